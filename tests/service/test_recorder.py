import logging
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.database import open_database, sqlite_url
from service.jobs import JobRecord, Periods, State, Status, is_job_id
from service.recorder import QUEUE_LENGTH, Recorder, record_job
from service.store import open_store
from service.writer import Pace

QUICK = Pace(write_s=0.05, heartbeat_s=0.1, retry_s=0.1, close_s=2.0)


def record(url: str, pace: Pace = QUICK, **more: Any) -> Recorder:
    return record_job(url, kind="train-student", unit="steps", pace=pace, **more)


def read(url: str, job_id: str) -> JobRecord | None:
    found = open_store(url).get(job_id)
    return None if found is None else found.record


def read_surely(url: str, job_id: str) -> JobRecord:
    found = read(url, job_id)
    assert found is not None
    return found


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the database's write lock, as another process would."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [log.getMessage() for log in caplog.records if log.levelno >= logging.WARNING]


def test_a_job_s_record_tells_its_life_from_pending_to_succeeded(
    url: str, eventually: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    recorder = record(url, config={"epochs": 3, "teacher": Path("/srv/models/teacher.bin")})
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
    assert end.config == {"epochs": 3, "teacher": "teacher.bin"}
    assert (end.pid, end.kind) == (os.getpid(), "train-student")
    assert warnings_of(caplog) == []


def test_a_job_of_a_millisecond_is_recorded_whole(url: str) -> None:
    with record(url, Pace()) as recorder:
        recorder.progress(1, 2)
        recorder.progress(2, 2, {"loss": 0.25})
    end = read_surely(url, recorder.job_id)
    assert (end.state, end.done, end.metrics) == (State.SUCCEEDED, 2, {"loss": 0.25})


def test_ids_of_later_jobs_sort_later(url: str) -> None:
    ids = []
    for _ in range(3):
        with record(url) as recorder:
            ids.append(recorder.job_id)
        time.sleep(0.002)
    assert ids == sorted(ids)
    assert [job.record.id for job in open_store(url).list().jobs] == ids[::-1]


def test_an_exception_reaches_the_caller_and_is_the_record_s_reason(url: str) -> None:
    with pytest.raises(OSError, match="No space"), record(url) as recorder:
        raise OSError(28, "No space left on device", "/srv/runs/7/last.safetensors")
    end = read_surely(url, recorder.job_id)
    assert end.state is State.FAILED
    assert end.reason == "OSError: [Errno 28] No space left on device: 'last.safetensors'"


def test_an_interrupted_job_is_cancelled(url: str) -> None:
    with pytest.raises(KeyboardInterrupt), record(url) as recorder:
        raise KeyboardInterrupt
    end = read_surely(url, recorder.job_id)
    assert (end.state, end.reason) == (State.CANCELLED, "interrupted")


def test_without_a_url_the_job_is_recorded_in_its_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RETORT_DB", raising=False)
    monkeypatch.chdir(tmp_path)
    with record_job(kind="k", unit="u") as recorder:
        pass
    url = sqlite_url(tmp_path / ".retort" / "jobs.db")
    assert read_surely(url, recorder.job_id).state is State.SUCCEEDED


def test_the_first_end_stands(url: str) -> None:
    with record(url) as recorder:
        recorder.finish("cancelled", "SIGTERM")
        recorder.finish(State.SUCCEEDED)
        recorder.progress(9, 9)
    end = read_surely(url, recorder.job_id)
    assert (end.state, end.reason, end.done) == (State.CANCELLED, "SIGTERM", 0)


def test_a_job_that_ends_while_it_is_being_cancelled_keeps_the_end_it_reached(
    url: str, eventually: Callable[..., None]
) -> None:
    with record(url) as recorder:
        eventually(lambda: getattr(read(url, recorder.job_id), "state", None) is State.RUNNING)
        open_store(url).transition(recorder.job_id, State.CANCELLING)
    assert read_surely(url, recorder.job_id).state is State.SUCCEEDED


def test_names_that_are_not_text_can_be_recorded(url: str) -> None:
    with record(url, config={"images": "n01/\udcff.jpg"}) as recorder:
        recorder.finish(State.FAILED, "non-finite loss in n01/\udcff\0.jpg")
    end = read_surely(url, recorder.job_id)
    assert end.reason == "non-finite loss in n01/\\udcff\\x00.jpg"
    assert end.config == {"images": "n01/\\udcff.jpg"}


def test_a_locked_database_never_slows_or_stops_the_job(
    file: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    open_database(url).prepare()
    with locked(file):
        began_s = time.perf_counter()
        with record(url, Pace(write_s=0.01, close_s=0.3)) as recorder:
            for step in range(2000):
                recorder.progress(step, 2000, {"loss": 1.0})
            stepped_s = time.perf_counter() - began_s
        closed_s = time.perf_counter() - began_s
        assert stepped_s < 1.0  # one step that waited for the lock would take 5 s
        assert 0.3 <= closed_s - stepped_s < 2.0
    assert len(warnings_of(caplog)) == 1
    assert f"job {recorder.job_id} goes on, but its status is not recorded" in caplog.text


def test_a_lock_that_is_released_costs_nothing_of_the_record(
    file: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    open_database(url).prepare()
    with record(url) as recorder, locked(file):
        for step in range(3 * QUEUE_LENGTH):  # more than is kept: the oldest are dropped
            recorder.progress(step, 9999, {"step": step})
        time.sleep(0.2)
    end = read_surely(url, recorder.job_id)
    assert (end.state, end.done) == (State.SUCCEEDED, 3 * QUEUE_LENGTH - 1)
    assert warnings_of(caplog) == []


def test_a_database_deleted_during_the_run_is_made_again_with_the_whole_record(
    file: Path, url: str, eventually: Callable[..., None]
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
    unusable: Callable[[Path], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = unusable(tmp_path)
    before = {entry: entry.read_bytes() for entry in tmp_path.iterdir()}
    began_s = time.perf_counter()
    with record(url, Pace(write_s=0.01, retry_s=0.02)) as recorder:
        for step in range(10):
            recorder.progress(step, 10, {"loss": 1.0})
            time.sleep(0.01)
    assert time.perf_counter() - began_s < 3.0  # it does not sit out the time to close
    assert len(warnings_of(caplog)) == 1
    assert recorder.job_id in caplog.text
    assert "s3cret" not in caplog.text
    assert {entry: entry.read_bytes() for entry in tmp_path.iterdir()} == before


@pytest.mark.parametrize("metrics", [{"loss": "high"}, 7, {"loss": object()}])
def test_metrics_of_a_wrong_type_cost_a_warning_and_not_the_end(
    url: str, metrics: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with record(url) as recorder:
        recorder.progress(1, 2, metrics)
        time.sleep(0.2)
        recorder.progress(2, 2, {"loss": 1.0})
    end = read_surely(url, recorder.job_id)
    assert (end.state, end.done, end.metrics) == (State.SUCCEEDED, 2, {"loss": 1.0})
    assert len(warnings_of(caplog)) == 1


def test_an_end_that_is_none_costs_a_warning(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with record(url) as recorder:
        recorder.finish("running")
        recorder.finish("finished")
    assert read_surely(url, recorder.job_id).state is State.SUCCEEDED
    assert "got the end 'running', expected succeeded, failed or cancelled" in caplog.text
    assert len(warnings_of(caplog)) == 1


def test_progress_is_written_no_more_often_than_the_pace_allows(file: Path, url: str) -> None:
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


def test_a_job_without_progress_still_beats(url: str, eventually: Callable[..., None]) -> None:
    with record(url) as recorder:
        recorder.progress(1, 2)
        eventually(lambda: getattr(read(url, recorder.job_id), "done", None) == 1)
        before = read_surely(url, recorder.job_id)
        eventually(lambda: read_surely(url, recorder.job_id).heartbeat > before.heartbeat)
        assert read_surely(url, recorder.job_id).progress_at == before.progress_at


ENDLESS_JOB = """
    import sys, time
    from service.recorder import record_job
    from service.writer import Pace

    pace = Pace(write_s=0.05, heartbeat_s=0.1)
    with record_job(sys.argv[1], kind="cache-teacher", unit="records", pace=pace) as recorder:
        print(recorder.job_id, flush=True)
        for step in range(10**6):
            recorder.progress(step, 10**6)
            time.sleep(0.01)
"""


@pytest.mark.kill
def test_a_killed_job_reads_as_crashed_once_the_period_has_passed(
    url: str, start_python: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    process = start_python(ENDLESS_JOB, url)
    job_id = process.stdout.readline().strip()
    store, periods = open_store(url), Periods(stale_s=1.0, crashed_s=1.5)

    def status() -> Status | None:
        found = store.get(job_id)
        return None if found is None else found.status(periods)

    eventually(lambda: status() is Status.RUNNING)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert status() is Status.RUNNING  # nobody can know yet
    eventually(lambda: status() is Status.STALE)
    eventually(lambda: status() is Status.CRASHED)
    end = read_surely(url, job_id)
    assert (end.state, end.ended, end.pid) == (State.RUNNING, None, process.pid)


def test_a_late_heartbeat_heals_a_job_that_read_as_crashed(
    url: str, start_python: Callable[..., Any], eventually: Callable[..., None]
) -> None:
    process = start_python(ENDLESS_JOB, url)
    job_id = process.stdout.readline().strip()
    store, periods = open_store(url), Periods(stale_s=0.4, crashed_s=0.6)
    eventually(lambda: getattr(read(url, job_id), "state", None) is State.RUNNING)
    process.send_signal(signal.SIGSTOP)
    eventually(lambda: store.get(job_id).status(periods) is Status.CRASHED)
    process.send_signal(signal.SIGCONT)
    eventually(lambda: store.get(job_id).status(periods) is Status.RUNNING)


def test_a_job_whose_process_exits_without_closing_is_not_held_up(
    url: str, start_python: Callable[..., Any]
) -> None:
    process = start_python(
        """
        import sys
        from service.recorder import record_job

        recorder = record_job(sys.argv[1], kind="k", unit="u").__enter__()
        recorder.progress(1, 2)
        """,
        url,
    )
    _, errors = process.communicate(timeout=5)
    assert (process.returncode, errors) == (0, "")


FORKING_JOB = """
    import multiprocessing, os, sys, time
    from service.recorder import record_job
    from service.writer import Pace

    def work(recorder, number):
        recorder.progress(900 + number, 1000, {"loss": -1.0})
        recorder.finish("failed", "written by a child")
        recorder.close()

    def wait(pid):
        deadline_s = time.monotonic() + 5
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline_s:
                os.kill(pid, 9)
                sys.exit("a child hangs")
            time.sleep(0.001)

    pace = Pace(write_s=0.001, heartbeat_s=0.002)  # forks fall into the midst of writes
    forks = int(sys.argv[2])
    children = 0
    with record_job(sys.argv[1], kind="k", unit="u", pace=pace) as recorder:
        print(recorder.job_id, flush=True)
        for number in range(forks):
            recorder.progress(number, forks)
            time.sleep(0.003)
            pid = os.fork()
            if pid == 0:
                work(recorder, number)
                if number % 4:
                    os._exit(0)
                raise SystemExit(0)  # through the with block and the interpreter's whole exit
            wait(pid)
        # as if the writing thread were waking at the moment of the fork: the lock stays held there
        with recorder._outbox.wake._cond:
            pid = os.fork()
            if pid == 0:
                work(recorder, 0)
                os._exit(0)
        wait(pid)
        fork = multiprocessing.get_context("fork")
        workers = [fork.Process(target=work, args=(recorder, number)) for number in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(5)
            assert worker.exitcode == 0, worker.exitcode
        recorder.progress(forks, forks)
"""


def test_forked_workers_neither_write_the_record_nor_hang(
    file: Path, url: str, start_python: Callable[..., Any]
) -> None:
    forks = 16
    process = start_python(FORKING_JOB, url, str(forks))
    job_id, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, "")
    end = read_surely(url, job_id.strip())
    assert (end.state, end.reason, end.done) == (State.SUCCEEDED, None, forks)
    assert end.metrics == {}
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
