"""How a job records itself without ever being hurt by it.

The job's side only appends to memory; a daemon thread of its own stores that. Whatever goes wrong
with the database costs one warning in the log and nothing else: no exception reaches the job, no
call waits, and a full queue drops its oldest progress. Closing alone waits, for a bounded time.

    with record_job(url, kind="train-student", unit="steps", config={...}, out=out) as recorder:
        for progress in train(...):
            recorder.progress(progress.done, progress.total, progress.metrics, progress.resumed)
            if recorder.cancel_requested:
                break
"""

import hashlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from service.jobs import State, job_id
from service.recording.environment import libraries
from service.recording.log_tail import LogTail, public_traceback
from service.recording.outbox import Change, JobIdentity, Outbox, Pace, Remark, Report
from service.recording.record_writer import store_outbox
from service.recording.redaction import public_text, public_value, shown_config
from service.records.connections.database import default_url
from service.records.events import EventKind
from service.records.job_store import open_store

LOGGERS = ("teacher_cache", "student")
"""Whose warnings become events of the record."""
WARNINGS_KEPT = 100
"""A further warning of the same process is not recorded."""


def record_job(
    url: str | None = None,
    *,
    kind: str,
    unit: str,
    config: Mapping[str, Any] | None = None,
    out: Path | str | None = None,
    device: str | None = None,
    rank: int = 0,
    images_per_unit: int | None = None,
    pace: Pace | None = None,
) -> "Recorder":
    """Record a new job at `url`, pending from now and running once the recorder is entered.

    Without a `url` it is recorded at RETORT_DB, or in `.retort/jobs.db` in the working directory.
    Never raises for the database's sake.

    Args:
        url: of the database.
        kind: `cache-teacher`, `train-student`.
        unit: what progress counts (`steps`, `records`).
        config: the recipe by dotted keys, of which `public.CONFIG_KEYS` alone are recorded;
            absolute paths are cut to their last part.
        out: where the job writes: a rerun with the same one is recorded as resuming this job, and
            other ranks find it by that.
        device: what it computes on.
        rank: 0 records the job; others only add a row of their own to the job that 0 records.
        images_per_unit: how many images one unit stands for.
        pace: how often is written.
    """
    job = JobIdentity(
        id=job_id(time.time_ns() // 1_000_000, secrets.token_bytes(10)),
        kind=kind,
        unit=unit,
        host=socket.gethostname(),
        pid=os.getpid(),
        config=cast("Mapping[str, object]", public_value(shown_config(config or {}))),
        environment={**libraries(), "device": device},
        rank=rank,
        attempt=_restarts(),
        target=None if out is None else _digest(kind, out),
        images_per_unit=images_per_unit,
    )
    recorder = Recorder(job, Pace() if pace is None else pace)
    recorder.start(url)
    return recorder


@contextmanager
def recorded_if_it_fails(*, rank: int | None = None, **job: Any) -> Iterator[None]:
    """Record a job that fails in this block, before it could begin: see `record_job`.

    A process other than the first leaves it to the first, and what stopped together to whom it
    was stopped by.
    """
    try:
        yield
    except Exception as error:
        number = os.environ.get("RANK", "0") if rank is None else str(rank)
        if number == "0":
            with suppress(type(error)), record_job(**job):
                raise
        raise


class Recorder:
    """The job's side of its record: a context manager whose methods neither raise nor wait.

    In a process forked from the job (a loader's worker) every method does nothing: the record has
    one writer.
    """

    def __init__(self, job: JobIdentity, pace: Pace) -> None:
        self.job_id = job.id
        self.kind = job.kind
        self._job = job
        self._pace = pace
        self._outbox = Outbox()
        self._thread: threading.Thread | None = None
        self._ended = False
        self._remarks = 0
        self._warnings = _Warnings(self)
        self._log_tail = LogTail(self._outbox)

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody asked for the job to stop after its step or block."""
        return self._outbox.cancel_requested.is_set()

    def was_cancelled(self, within_s: float) -> bool:
        """Whether somebody asked for the job to stop, looked up anew, for at most `within_s`."""
        self._outbox.wake.set()
        return self._outbox.cancel_requested.wait(within_s if self._thread else 0.0)

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
        for name in LOGGERS:
            logging.getLogger(name).addHandler(self._warnings)
        logging.getLogger().addHandler(self._log_tail)
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
                self._outbox.traceback = public_traceback(error)
                name = type(error).__name__
                self.finish(State.FAILED, f"{name}: {error}" if str(error) else name)
        self.close()

    def progress(
        self,
        done: int,
        total: int,
        metrics: Mapping[str, float] | None = None,
        resumed: int = 0,
        *,
        own: int | None = None,
        saved: int | None = None,
    ) -> None:
        """Report that `done` of `total` units are finished, `resumed` of them before this run.

        A metric that is left out keeps its last value; `bytes` is what was written so far. `own`
        is what this process did itself, `saved` how much was done in the state that was saved.
        """
        if self._ended or os.getpid() != self._job.pid:
            return
        now_s = time.monotonic()
        try:
            report = Report(int(done), int(total), int(resumed), dict(metrics or {}), now_s, own)
            self._outbox.reports.append(report)
        except Exception as error:  # noqa: BLE001 - not even metrics of a wrong type stop a job
            self._outbox.warn_once(self.job_id, error)
        if saved is not None:
            self.remark(EventKind.CHECKPOINT, f"saved at {saved} of {total} {self._job.unit}")

    def remark(self, kind: EventKind, text: str) -> None:
        """Add an event to the record."""
        if self._ended or os.getpid() != self._job.pid:
            return
        self._remarks += 1
        remark = Remark(self._remarks, kind, public_text(text), time.monotonic())
        self._outbox.remarks.append(remark)

    def log(self, text: str) -> None:
        """Add lines to the end of the log that the record holds."""
        if not self._ended and os.getpid() == self._job.pid:
            self._log_tail.keep(text)

    def artifact(self, name: str, file: Path) -> None:
        """Record a file that the job leaves behind, if it is there: size and SHA-256, no path."""
        if self._ended or os.getpid() != self._job.pid:
            return
        try:
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            size = file.stat().st_size
        except OSError:
            return
        self._outbox.artifacts.append({"name": name, "size": size, "sha256": digest})

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
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(self._warnings)
        logging.getLogger().removeHandler(self._log_tail)
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


class _Warnings(logging.Handler):
    """Makes the warnings of the job's own packages events of its record."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(logging.WARNING)
        self._recorder = recorder
        self._count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Record one warning, the first hundred of them."""
        self._count += 1
        if self._count <= WARNINGS_KEPT:
            self._recorder.remark(EventKind.WARNING, record.getMessage())
        elif self._count == WARNINGS_KEPT + 1:
            self._recorder.remark(EventKind.WARNING, "further warnings are in the job's log alone")


def _restarts() -> int:
    """Return how often torchrun has restarted this job's processes."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return int(count) if count.isdecimal() and len(count) < 9 else 0


def _digest(kind: str, out: Path | str) -> str:
    """Return by what a rerun on the same folder, or URL, is known."""
    place = str(out) if "://" in str(out) else str(Path(out).resolve())
    return hashlib.sha256(f"{kind}\0{place}".encode(errors="surrogateescape")).hexdigest()
