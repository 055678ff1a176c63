"""Real processes that are killed, stopped, forked."""

import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from service.jobs import JobRecord, Periods, State, Status
from service.records.job_store import open_store

ENDLESS_JOB = """
    import sys, time
    from service.recording.recorder import record_job
    from service.recording.outbox import Pace

    pace = Pace(write_s=0.05, heartbeat_s=0.1)
    with record_job(sys.argv[1], kind="cache-teacher", unit="records", pace=pace) as recorder:
        print(recorder.job_id, flush=True)
        for step in range(10**6):
            recorder.progress(step, 10**6)
            time.sleep(0.01)
"""


@pytest.mark.kill
def test_a_killed_job_reads_as_crashed_once_the_period_has_passed(
    url: str,
    start_python: Callable[..., Any],
    eventually: Callable[..., None],
    read_surely: Callable[..., JobRecord],
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
    url: str,
    start_python: Callable[..., Any],
    eventually: Callable[..., None],
    read: Callable[..., JobRecord | None],
) -> None:
    process = start_python(ENDLESS_JOB, url)
    job_id = process.stdout.readline().strip()
    store, periods = open_store(url), Periods(stale_s=0.4, crashed_s=0.6)
    eventually(lambda: getattr(read(url, job_id), "state", None) is State.RUNNING)
    process.send_signal(signal.SIGSTOP)
    eventually(lambda: store.get(job_id).status(periods) is Status.CRASHED)
    process.send_signal(signal.SIGCONT)
    eventually(lambda: store.get(job_id).status(periods) is Status.RUNNING)


def test_a_job_stopped_in_the_midst_of_a_write_locks_no_reader_out(
    url: str,
    start_python: Callable[..., Any],
    eventually: Callable[..., None],
    read: Callable[..., JobRecord | None],
) -> None:
    process = start_python(ENDLESS_JOB.replace("write_s=0.05", "write_s=0.002"), url)
    job_id = process.stdout.readline().strip()
    store = open_store(url)
    eventually(lambda: getattr(read(url, job_id), "state", None) is State.RUNNING)
    for stop in range(30):
        time.sleep(0.001 * (stop % 7))
        process.send_signal(signal.SIGSTOP)
        began_s = time.perf_counter()
        assert store.get(job_id) is not None
        assert time.perf_counter() - began_s < 1.0
        process.send_signal(signal.SIGCONT)


def test_a_job_whose_process_exits_without_closing_is_not_held_up(
    url: str, start_python: Callable[..., Any]
) -> None:
    process = start_python(
        """
        import sys
        from service.recording.recorder import record_job

        recorder = record_job(sys.argv[1], kind="k", unit="u").__enter__()
        recorder.progress(1, 2)
        """,
        url,
    )
    _, errors = process.communicate(timeout=5)
    assert (process.returncode, errors) == (0, "")


FORKING_JOB = """
    import multiprocessing, os, sys, time
    from service.recording.recorder import record_job
    from service.recording.outbox import Pace

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
    file: Path, url: str, start_python: Callable[..., Any], read_surely: Callable[..., JobRecord]
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
