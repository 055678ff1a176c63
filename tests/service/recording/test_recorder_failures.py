"""What a job does where its record cannot be written: everything that it does elsewhere."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.jobs import JobRecord, State
from service.recording.outbox import REPORTS_KEPT, Pace
from service.recording.recorder import Recorder
from service.records.connections.database import open_database, sqlite_url


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the database's write lock, as another process would."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def test_a_locked_database_never_slows_or_stops_the_job(
    file: Path,
    url: str,
    caplog: pytest.LogCaptureFixture,
    record: Callable[..., Recorder],
    warnings_of: Callable[..., list[str]],
) -> None:
    open_database(url).prepare()
    with locked(file):
        began_s = time.perf_counter()
        with record(url, Pace(write_s=0.01, close_s=0.3)) as recorder:
            for step in range(2000):
                recorder.progress(step, 2000, {"loss": 1.0})
            stepped_s = time.perf_counter() - began_s
        closed_s = time.perf_counter() - began_s
        assert stepped_s < 5.0  # one step that waited for the lock would take 5 s
        assert 0.3 <= closed_s - stepped_s < 60
    assert len(warnings_of(caplog)) == 1
    assert f"job {recorder.job_id} goes on, but its status is not recorded" in caplog.text


def test_a_lock_that_is_released_costs_nothing_of_the_record(
    file: Path,
    url: str,
    caplog: pytest.LogCaptureFixture,
    record: Callable[..., Recorder],
    read_surely: Callable[..., JobRecord],
    warnings_of: Callable[..., list[str]],
) -> None:
    open_database(url).prepare()
    with record(url) as recorder, locked(file):
        for step in range(3 * REPORTS_KEPT):  # more than is kept: the oldest are dropped
            recorder.progress(step, 9999, {"step": step})
        time.sleep(0.2)
    end = read_surely(url, recorder.job_id)
    assert (end.state, end.done) == (State.SUCCEEDED, 3 * REPORTS_KEPT - 1)
    assert warnings_of(caplog) == []


def test_a_database_deleted_during_the_run_is_made_again_with_the_whole_record(
    file: Path,
    url: str,
    eventually: Callable[..., None],
    record: Callable[..., Recorder],
    read_surely: Callable[..., JobRecord],
    read: Callable[..., JobRecord | None],
) -> None:
    with record(url) as recorder:
        recorder.progress(1, 3, {"loss": 3.0})
        eventually(lambda: getattr(read(url, recorder.job_id), "done", None) == 1)
        for part in file.parent.iterdir():
            part.unlink()
        file.parent.rmdir()
        recorder.progress(2, 3, {"top1": 0.5})
        eventually(lambda: getattr(read(url, recorder.job_id), "done", None) == 2)
        recorder.progress(3, 3)
    end = read_surely(url, recorder.job_id)
    assert (end.state, end.done, end.metrics) == (State.SUCCEEDED, 3, {"loss": 3.0, "top1": 0.5})


def _in_a_folder_that_is_a_file(tmp_path: Path) -> str:
    (tmp_path / "plain").write_text("x")
    return sqlite_url(tmp_path / "plain" / "jobs.db")


def _where_the_kernel_lets_nobody_write(tmp_path: Path) -> str:
    return sqlite_url(Path("/proc/retort/jobs.db"))


def _at_a_folder(tmp_path: Path) -> str:
    return sqlite_url(tmp_path)


def _of_no_database(tmp_path: Path) -> str:
    (tmp_path / "jobs.db").write_bytes(b"not a database, " * 100)
    return sqlite_url(tmp_path / "jobs.db")


def _of_another_schema(tmp_path: Path) -> str:
    url = sqlite_url(tmp_path / "jobs.db")
    open_database(url).prepare()
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection, connection:
        connection.execute("UPDATE retort_schema SET version = 7")
    return url


def _on_no_server(tmp_path: Path) -> str:
    return "postgresql://ada:s3cret@127.0.0.1:1/jobs"


def _of_an_unknown_scheme(tmp_path: Path) -> str:
    return "gopher://ada:s3cret@example.org/jobs"


def _that_is_no_url(tmp_path: Path) -> str:
    return "s3cret"


@pytest.mark.parametrize(
    "unusable",
    [
        _in_a_folder_that_is_a_file,
        _where_the_kernel_lets_nobody_write,
        _at_a_folder,
        _of_no_database,
        _of_another_schema,
        _on_no_server,
        _of_an_unknown_scheme,
        _that_is_no_url,
    ],
)
def test_a_job_goes_on_with_one_warning_where_its_database_is_unusable(
    unusable: Callable[[Path], str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    record: Callable[..., Recorder],
    warnings_of: Callable[..., list[str]],
) -> None:
    url = unusable(tmp_path)
    before = {entry: entry.read_bytes() for entry in tmp_path.iterdir()}
    began_s = time.perf_counter()
    with record(url, Pace(write_s=0.01, retry_s=0.02, close_s=120.0)) as recorder:
        for step in range(10):
            recorder.progress(step, 10, {"loss": 1.0})
            time.sleep(0.01)
    assert time.perf_counter() - began_s < 60  # it does not sit out the time to close
    assert len(warnings_of(caplog)) == 1
    assert recorder.job_id in caplog.text
    assert "s3cret" not in caplog.text
    assert {entry: entry.read_bytes() for entry in tmp_path.iterdir()} == before


@pytest.mark.parametrize("metrics", [{"loss": "high"}, 7, {"loss": object()}])
def test_metrics_of_a_wrong_type_cost_a_warning_and_not_the_end(
    url: str,
    metrics: Any,
    caplog: pytest.LogCaptureFixture,
    record: Callable[..., Recorder],
    read_surely: Callable[..., JobRecord],
    warnings_of: Callable[..., list[str]],
) -> None:
    with record(url) as recorder:
        recorder.progress(1, 2, metrics)
        time.sleep(0.2)
        recorder.progress(2, 2, {"loss": 1.0})
    end = read_surely(url, recorder.job_id)
    assert (end.state, end.done, end.metrics) == (State.SUCCEEDED, 2, {"loss": 1.0})
    assert len(warnings_of(caplog)) == 1


def test_an_end_that_is_none_costs_a_warning(
    url: str,
    caplog: pytest.LogCaptureFixture,
    record: Callable[..., Recorder],
    read_surely: Callable[..., JobRecord],
    warnings_of: Callable[..., list[str]],
) -> None:
    with record(url) as recorder:
        recorder.finish("running")
        recorder.finish("finished")
    assert read_surely(url, recorder.job_id).state is State.SUCCEEDED
    assert "got the end 'running', expected succeeded, failed or cancelled" in caplog.text
    assert len(warnings_of(caplog)) == 1
