"""Ranks, points, events, artifacts and cancellation as a job records them."""

import hashlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.jobs import JobRecord, State
from service.recording.outbox import Pace
from service.recording.recorder import WARNINGS_KEPT, Recorder
from service.records.job_store import open_store


def texts(url: str, job: str, kind: str) -> list[str]:
    events = open_store(url).events(job, limit=1000)
    assert events is not None
    return [event.text for event in events.events if event.kind == kind]


def test_metrics_become_points_by_step_and_places_do_not(
    url: str, record: Callable[..., Recorder]
) -> None:
    with record(url) as recorder:
        for step in (1, 2, 3):
            recorder.progress(step, 3, {"loss": 1 / step, "step": step, "epoch": 0})
        recorder.progress(3, 3, {"top1": float("nan"), "bytes": 500})
    store = open_store(url)
    names = store.metric_names(recorder.job_id)
    assert names is not None
    assert [(name.name, name.points) for name in names] == [("loss", 3), ("top1", 1)]
    series = store.metrics(recorder.job_id, ["loss", "top1"])
    assert series is not None
    assert series[0].last == (1.0, 0.5, 1 / 3)
    assert series[1].last == (None,)
    found = store.get(recorder.job_id)
    assert found is not None
    assert found.record.bytes == 500


def test_warnings_of_the_job_s_packages_and_checkpoints_are_events(
    url: str, record: Callable[..., Recorder]
) -> None:
    with record(url) as recorder:
        logging.getLogger("student.training.train").warning("slow: %s", "/data/x/a.jpg")
        logging.getLogger("student.training.train").info("not this")
        logging.getLogger("elsewhere").warning("nor this")
        recorder.progress(6, 9, saved=5)
    logging.getLogger("student.training.train").warning("nor this: it has ended")
    assert texts(url, recorder.job_id, "warning") == ["slow: a.jpg"]
    assert texts(url, recorder.job_id, "checkpoint") == ["saved at 5 of 9 steps"]
    assert texts(url, recorder.job_id, "state") == ["pending", "running", "succeeded"]


def test_a_flood_of_warnings_is_bounded(url: str, record: Callable[..., Recorder]) -> None:
    with record(url) as recorder:
        for number in range(3 * WARNINGS_KEPT):
            logging.getLogger("teacher_cache").warning("%d", number)
    found = texts(url, recorder.job_id, "warning")
    assert len(found) == WARNINGS_KEPT + 1
    assert found[-1] == "further warnings are in the job's log alone"


def test_a_rerun_of_the_same_out_resumes_the_job_before_it(
    url: str,
    tmp_path: Path,
    record: Callable[..., Recorder],
    read_surely: Callable[..., JobRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = []
    for out, restarts in (("run", "0"), ("other", "0"), ("run", "2"), ("./run", "x")):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        with record(url, out=Path(out)) as recorder:
            ids.append(recorder.job_id)
    found = [read_surely(url, job) for job in ids]
    assert [job.resumed_from for job in found] == [None, None, ids[0], ids[2]]
    assert [job.attempt for job in found] == [0, 0, 2, 0]


def test_artifacts_are_recorded_by_name_with_size_and_digest(
    url: str,
    tmp_path: Path,
    record: Callable[..., Recorder],
    read_surely: Callable[..., JobRecord],
) -> None:
    (tmp_path / "weights.bin").write_bytes(b"weights")
    with record(url, device="cpu") as recorder:
        recorder.artifact("last.pt", tmp_path / "weights.bin")
        recorder.artifact("absent", tmp_path / "absent")
    end = read_surely(url, recorder.job_id)
    digest = hashlib.sha256(b"weights").hexdigest()
    assert list(end.artifacts) == [{"name": "last.pt", "size": 7, "sha256": digest}]
    assert end.environment["device"] == "cpu"
    assert end.environment["torch"]


def test_a_cancellation_reaches_the_job_and_its_end_stands(
    url: str,
    record: Callable[..., Recorder],
    read_surely: Callable[..., JobRecord],
    eventually: Callable[..., None],
) -> None:
    store = open_store(url)
    with record(url) as recorder:
        eventually(lambda: store.get(recorder.job_id))
        assert not recorder.cancel_requested
        store.request_cancel(recorder.job_id)
        eventually(lambda: recorder.cancel_requested)
        recorder.finish("cancelled", "saved")
    end = read_surely(url, recorder.job_id)
    assert (end.state, end.reason) == (State.CANCELLED, "saved")


def test_a_rank_that_ends_before_the_first_one_has_written_has_a_row_too(
    url: str,
    record: Callable[..., Recorder],
    eventually: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    early = record(url, out="run", rank=1)  # in a database that does not exist yet
    with ThreadPoolExecutor(1) as other, early:
        early.progress(10, 20, own=5)
        early.finish("succeeded")
        closing = other.submit(early.close)
        eventually(closing.running)
        time.sleep(0.3)
        assert not closing.done()
        with record(url, out="run") as first:
            closing.result(timeout=5)
    ranks = open_store(url).ranks(first.job_id)
    assert ranks is not None
    assert [(rank.rank, rank.state, rank.done) for rank in ranks] == [
        (0, State.SUCCEEDED, 0),
        (1, State.SUCCEEDED, 5),
    ]
    assert caplog.text == ""


def test_a_rank_that_begins_after_the_first_one_has_ended_has_a_row_too(
    url: str, record: Callable[..., Recorder]
) -> None:
    with record(url, out="run") as first:
        pass
    with record(url, out="run", rank=1) as late:
        late.finish("failed", "the other has ended")
    ranks = open_store(url).ranks(first.job_id)
    assert ranks is not None
    assert [(rank.rank, rank.state) for rank in ranks] == [
        (0, State.SUCCEEDED),
        (1, State.FAILED),
    ]


def test_a_rank_that_failed_does_not_wait_for_the_first_one(
    url: str, record: Callable[..., Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    began_s = time.monotonic()
    with record(url, Pace(close_s=120.0), out="run", rank=1) as recorder:
        recorder.finish("failed", "no device")
    assert time.monotonic() - began_s < 60
    assert caplog.text == ""


def test_a_rank_whose_first_one_records_elsewhere_says_so_and_waits_no_longer_than_agreed(
    url: str, record: Callable[..., Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    began_s = time.monotonic()
    with record(url, Pace(close_s=1.0), out="run", rank=1) as recorder:
        recorder.progress(10, 20, own=5)
    assert 0.5 < time.monotonic() - began_s < 60
    (warning,) = caplog.messages
    assert "let RETORT_DB name the same one for all ranks" in warning


def test_every_rank_has_a_row_and_its_own_end(
    url: str, record: Callable[..., Recorder], eventually: Callable[..., None]
) -> None:
    store = open_store(url)
    with record(url, out="run") as first:
        first.progress(8, 20, resumed=2)
        eventually(lambda: store.get(first.job_id))
        with record(url, out="run", rank=3) as third:
            third.progress(8, 20, resumed=2, own=4)
            logging.getLogger("student").warning("both hear it")
    assert [job.record.id for job in store.list().jobs] == [first.job_id]
    ranks = store.ranks(first.job_id)
    assert ranks is not None
    assert [(rank.rank, rank.state, rank.done) for rank in ranks] == [
        (0, State.SUCCEEDED, 6),
        (3, State.SUCCEEDED, 4),
    ]
    assert texts(url, first.job_id, "warning").count("both hear it") >= 1
