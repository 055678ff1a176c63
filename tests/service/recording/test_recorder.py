"""How a job's life is recorded."""

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from service.jobs import JobRecord, State, is_job_id
from service.recording.outbox import Pace
from service.recording.recorder import Recorder, record_job
from service.records.connections.database import open_database, sqlite_url
from service.records.job_store import open_store


def test_a_job_s_record_tells_its_life_from_pending_to_succeeded(
    url: str,
    eventually: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    record: Callable[..., Recorder],
    read_surely: Callable[..., JobRecord],
    read: Callable[..., JobRecord | None],
    warnings_of: Callable[..., list[str]],
) -> None:
    recorder = record(
        url,
        config={
            "schedule": {"epochs": 3, "secret": "s3cret"},
            "data": Path("/srv/models/train"),
            "token": "s3cret",
        },
    )
    assert is_job_id(recorder.job_id)
    eventually(lambda: read(url, recorder.job_id))
    assert read_surely(url, recorder.job_id).state is State.PENDING
    with recorder:
        eventually(lambda: read_surely(url, recorder.job_id).state is State.RUNNING)
        recorder.progress(3, 10, {"loss": 2.0, "top1": 0.5}, resumed=2)
        recorder.progress(4, 10, {"loss": float("nan")}, resumed=2)
        eventually(lambda: read_surely(url, recorder.job_id).done == 4)
    end = read_surely(url, recorder.job_id)
    assert (end.state, end.reason, end.unit) == (State.SUCCEEDED, None, "steps")
    assert (end.done, end.total, end.resumed) == (4, 10, 2)
    assert end.metrics == {"loss": None, "top1": 0.5}
    assert end.config == {"schedule.epochs": 3, "data": "train"}
    assert (end.pid, end.kind) == (os.getpid(), "train-student")
    assert warnings_of(caplog) == []


def test_a_job_of_a_millisecond_is_recorded_whole(
    url: str, record: Callable[..., Recorder], read_surely: Callable[..., JobRecord]
) -> None:
    with record(url, Pace()) as recorder:
        recorder.progress(1, 2)
        recorder.progress(2, 2, {"loss": 0.25})
    end = read_surely(url, recorder.job_id)
    assert (end.state, end.done, end.metrics) == (State.SUCCEEDED, 2, {"loss": 0.25})


def test_ids_of_later_jobs_sort_later(url: str, record: Callable[..., Recorder]) -> None:
    ids = []
    for _ in range(3):
        with record(url) as recorder:
            ids.append(recorder.job_id)
        time.sleep(0.002)
    assert ids == sorted(ids)
    assert [job.record.id for job in open_store(url).list().jobs] == ids[::-1]


def test_an_exception_reaches_the_caller_and_is_the_record_s_reason(
    url: str, record: Callable[..., Recorder], read_surely: Callable[..., JobRecord]
) -> None:
    with pytest.raises(OSError, match="No space"), record(url) as recorder:
        raise OSError(28, "No space left on device", "/srv/runs/7/last.safetensors")
    end = read_surely(url, recorder.job_id)
    assert end.state is State.FAILED
    assert end.reason == "OSError: [Errno 28] No space left on device: 'last.safetensors'"


def test_an_interrupted_job_is_cancelled(
    url: str, record: Callable[..., Recorder], read_surely: Callable[..., JobRecord]
) -> None:
    with pytest.raises(KeyboardInterrupt), record(url) as recorder:
        raise KeyboardInterrupt
    end = read_surely(url, recorder.job_id)
    assert (end.state, end.reason) == (State.CANCELLED, "interrupted")


def test_without_a_url_the_job_is_recorded_in_its_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_surely: Callable[..., JobRecord]
) -> None:
    monkeypatch.delenv("RETORT_DB", raising=False)
    monkeypatch.chdir(tmp_path)
    with record_job(kind="k", unit="u") as recorder:
        pass
    url = sqlite_url(tmp_path / ".retort" / "jobs.db")
    assert read_surely(url, recorder.job_id).state is State.SUCCEEDED


def test_the_first_end_stands(
    url: str, record: Callable[..., Recorder], read_surely: Callable[..., JobRecord]
) -> None:
    with record(url) as recorder:
        recorder.finish("cancelled", "SIGTERM")
        recorder.finish(State.SUCCEEDED)
        recorder.progress(9, 9)
    end = read_surely(url, recorder.job_id)
    assert (end.state, end.reason, end.done) == (State.CANCELLED, "SIGTERM", 0)


def test_a_job_that_ends_while_it_is_being_cancelled_keeps_the_end_it_reached(
    url: str,
    eventually: Callable[..., None],
    record: Callable[..., Recorder],
    read_surely: Callable[..., JobRecord],
    read: Callable[..., JobRecord | None],
) -> None:
    with record(url) as recorder:
        eventually(lambda: getattr(read(url, recorder.job_id), "state", None) is State.RUNNING)
        open_store(url).transition(recorder.job_id, State.CANCELLING)
    assert read_surely(url, recorder.job_id).state is State.SUCCEEDED


def test_names_that_are_not_text_can_be_recorded(
    url: str, record: Callable[..., Recorder], read_surely: Callable[..., JobRecord]
) -> None:
    with record(url, config={"data": "n01/\udcff.jpg"}) as recorder:
        recorder.finish(State.FAILED, "non-finite loss in n01/\udcff\0.jpg")
    end = read_surely(url, recorder.job_id)
    assert end.reason == "non-finite loss in n01/\\udcff\\x00.jpg"
    assert end.config == {"data": "n01/\\udcff.jpg"}


def test_progress_is_written_no_more_often_than_the_pace_allows(
    file: Path, url: str, record: Callable[..., Recorder]
) -> None:
    open_database(url).prepare()
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE writes (done INTEGER)")
        connection.execute(
            "CREATE TRIGGER count_writes AFTER UPDATE OF done ON jobs "
            "BEGIN INSERT INTO writes VALUES (new.done); END"
        )
    began_s = time.perf_counter()
    with record(url, Pace(write_s=0.2)) as recorder:
        for step in range(500):
            recorder.progress(step, 500)
            time.sleep(0.002)
    took_s = time.perf_counter() - began_s
    with closing(sqlite3.connect(file)) as connection:
        writes = [done for (done,) in connection.execute("SELECT done FROM writes")]
    assert 3 <= len(writes) <= took_s / 0.2 + 2  # the state change and the end write too
    assert writes == sorted(writes)
    assert writes[-1] == 499


def test_a_job_without_progress_still_beats(
    url: str,
    eventually: Callable[..., None],
    record: Callable[..., Recorder],
    read_surely: Callable[..., JobRecord],
    read: Callable[..., JobRecord | None],
) -> None:
    with record(url) as recorder:
        recorder.progress(1, 2)
        eventually(lambda: getattr(read(url, recorder.job_id), "done", None) == 1)
        before = read_surely(url, recorder.job_id)
        eventually(lambda: read_surely(url, recorder.job_id).heartbeat > before.heartbeat)
        assert read_surely(url, recorder.job_id).progress_at == before.progress_at
