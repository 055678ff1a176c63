"""How a job records itself without ever being hurt by it.

The job's side only appends to memory; a daemon thread of its own stores that. Whatever goes wrong
with the database costs one warning in the log and nothing else: no exception reaches the job, no
call waits, and a full queue drops its oldest progress. Closing alone waits, for a bounded time.

    with record_job(url, kind="train-student", unit="steps", config={"epochs": 10}) as recorder:
        for progress in train(...):
            recorder.progress(progress.done, progress.total, progress.metrics, progress.resumed)
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, cast

from service.database import default_url
from service.jobs import State, job_id
from service.public import public_text, public_value
from service.store import open_store
from service.writer import Change, JobIdentity, Outbox, Pace, Report, store_outbox

QUEUE_LENGTH = 1024
"""Reports of progress kept in memory; a further one drops the oldest."""


def record_job(
    url: str | None = None,
    *,
    kind: str,
    unit: str,
    config: Mapping[str, Any] | None = None,
    pace: Pace | None = None,
) -> "Recorder":
    """Record a new job at `url`, pending from now and running once the recorder is entered.

    Without a `url` it is recorded at RETORT_DB, or in `.retort/jobs.db` in the working directory.

    `unit` is what progress counts (`steps`, `records`). `config` is the part of the recipe that
    any reader of the service may see; its absolute paths are cut to their last part. Never raises
    for the database's sake.
    """
    job = JobIdentity(
        id=job_id(time.time_ns() // 1_000_000, secrets.token_bytes(10)),
        kind=kind,
        unit=unit,
        host=socket.gethostname(),
        pid=os.getpid(),
        config=cast("Mapping[str, object]", public_value(dict(config or {}))),
    )
    recorder = Recorder(job, Pace() if pace is None else pace)
    recorder.start(url)
    return recorder


class Recorder:
    """The job's side of its record: a context manager whose methods neither raise nor wait.

    In a process forked from the job (a loader's worker) every method does nothing: the record has
    one writer.
    """

    def __init__(self, job: JobIdentity, pace: Pace) -> None:
        self.job_id = job.id
        self._job = job
        self._pace = pace
        self._outbox = Outbox(QUEUE_LENGTH)
        self._thread: threading.Thread | None = None
        self._ended = False

    def start(self, url: str | None) -> None:
        """Start the thread that writes to `url`; `record_job` has done so."""
        try:
            # Opened here, not in the thread: a driver's import that is under way there when the
            # job forks would leave the child with a locked module.
            store = open_store(default_url() if url is None else url)
            parts = (store, self._job, self._outbox, self._pace)
            thread = threading.Thread(
                target=store_outbox, args=parts, name="job-record", daemon=True
            )
            thread.start()
        except Exception as error:  # noqa: BLE001 - without a thread there is no record, but a job
            self._outbox.warn_once(self.job_id, error)
        else:
            self._thread = thread

    def __enter__(self) -> Self:
        """Say that the job runs."""
        self._change(State.RUNNING, None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Record the end, unless `finish` has, and close."""
        match error:
            case None:
                self.finish(State.SUCCEEDED)
            case KeyboardInterrupt():
                self.finish(State.CANCELLED, "interrupted")
            case _:
                name = type(error).__name__
                self.finish(State.FAILED, f"{name}: {error}" if str(error) else name)
        self.close()

    def progress(
        self,
        done: int,
        total: int,
        metrics: Mapping[str, float] | None = None,
        resumed: int = 0,
    ) -> None:
        """Report that `done` of `total` units are finished, `resumed` of them before this run.

        A metric that is left out keeps its last value.
        """
        if self._ended or os.getpid() != self._job.pid:
            return
        now_s = time.monotonic()
        try:
            report = Report(int(done), int(total), int(resumed), dict(metrics or {}), now_s)
            self._outbox.reports.append(report)
        except Exception as error:  # noqa: BLE001 - not even metrics of a wrong type stop a job
            self._outbox.warn_once(self.job_id, error)

    def finish(self, state: State | str, reason: str | None = None) -> None:
        """Record the job's end: succeeded, failed or cancelled. The first end stands."""
        if self._ended or os.getpid() != self._job.pid:
            return
        end = next((end for end in State if end.is_final and end == state), None)
        if end is None:
            cause = f"got the end {state!r}, expected succeeded, failed or cancelled"
            self._outbox.warn_once(self.job_id, cause)
            return
        self._ended = True
        if end is State.CANCELLED:
            self._change(State.CANCELLING, None)
        self._change(end, None if reason is None else public_text(reason))

    def close(self) -> None:
        """Wait until everything is stored, but at most `Pace.close_s`; a second call does nothing.

        Without an end recorded before, the job reads as crashed once its heartbeat is old.
        """
        if os.getpid() != self._job.pid or self._outbox.closing.is_set():
            return
        self._outbox.closing.set()
        self._outbox.wake.set()
        if self._thread is None:
            return
        self._thread.join(self._pace.close_s)
        if self._thread.is_alive():
            self._outbox.warn_once(self.job_id, f"not stored within {self._pace.close_s:g} s")

    def _change(self, state: State, reason: str | None) -> None:
        if os.getpid() == self._job.pid:
            self._outbox.changes.append(Change(state, reason, time.monotonic()))
            self._outbox.wake.set()
