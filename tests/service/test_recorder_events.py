"""Ranks, points, events, artifacts and cancellation as a job records them."""

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from service.jobs import JobRecord, State
from service.recorder import WARNINGS_KEPT, Recorder
from service.store import open_store


def texts(url: str, job: str, kind: str) -> list[str]:
    events = open_store(url).events(job, limit=1000)
    assert events is not None
    return [event.text for event in events if event.kind == kind]


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
        logging.getLogger("student.train").warning("slow: %s", "/data/x/a.jpg")
        logging.getLogger("student.train").info("not this")
        logging.getLogger("elsewhere").warning("nor this")
        recorder.progress(6, 9, saved=5)
    logging.getLogger("student.train").warning("nor this: it has ended")
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
