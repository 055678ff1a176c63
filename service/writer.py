"""The thread that stores a job's record: drains the outbox, retries, and keeps failures to itself.

Whatever it stores may be stored twice without harm: creating is idempotent, and a state change
that was already made, or that the stored state no longer allows, is left alone. So after any
failure it simply begins anew: the record of a database that was deleted comes back.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection

from service.database import StoreRefusedError
from service.jobs import (
    IllegalTransitionError,
    Sample,
    State,
    eta_s,
    rate_per_s,
    windowed,
)
from service.public import public_metrics
from service.store import JobStore, NoSuchJobError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a job's record is written and how long is waited for it, in seconds."""

    write_s: float = 1.0
    """Progress is written at most this often; a state change is written at once."""
    heartbeat_s: float = 10.0
    retry_s: float = 5.0
    """After a failure, the next attempt comes no sooner."""
    close_s: float = 5.0
    """Closing waits no longer than this for what is not stored yet."""


@dataclass(frozen=True, slots=True)
class JobIdentity:
    """What never changes about a job."""

    id: str
    kind: str
    unit: str
    host: str
    pid: int
    config: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Report:
    """One report of progress, at an instant of the job's monotonic clock."""

    done: int
    total: int
    resumed: int
    metrics: Mapping[str, float]
    at_s: float


@dataclass(frozen=True, slots=True)
class Change:
    """One state that the job reached, at an instant of its monotonic clock."""

    state: State
    reason: str | None
    at_s: float


class Outbox:
    """What the job's side leaves in memory for the writing thread; appending never waits."""

    def __init__(self, length: int) -> None:
        self.reports: deque[Report] = deque(maxlen=length)  # full: the oldest is dropped
        self.changes: list[Change] = []
        self.wake = threading.Event()
        self.closing = threading.Event()
        self._not_warned = threading.Lock()

    def warn_once(self, job_id: str, cause: object) -> None:
        """Log the first failure of this job's recording; the later ones are silent."""
        # a lock that is never released: whichever thread takes it is the one that warns
        if self._not_warned.acquire(blocking=False):
            _log.warning(
                "job %s goes on, but its status is not recorded: %s (no more is said of it)",
                job_id,
                cause,
            )


def store_outbox(store: JobStore, job: JobIdentity, outbox: Outbox, pace: Pace) -> None:
    """Store a job's outbox until it closes: what the recorder's thread does.

    The writer and its connection are known to this thread's stack alone, which a forked child
    never unwinds: closing a connection of its parent is what SQLite forbids a child.
    """
    RecordWriter(store, job, outbox, pace).run()


class RecordWriter:
    """Stores one job's outbox, in one thread."""

    def __init__(self, store: JobStore, job: JobIdentity, outbox: Outbox, pace: Pace) -> None:
        self._store = store
        self._job = job
        self._outbox = outbox
        self._pace = pace
        self._created = False
        self._changes_stored = 0
        self._samples: tuple[Sample, ...] = ()
        self._latest: Report | None = None
        self._metrics: dict[str, float | None] = {}
        self._latest_stored = True
        self._held: Connection | None = None
        self._failing = False
        self._attempted_s = float("-inf")
        self._written_s = float("-inf")

    def run(self) -> None:
        """Store until the outbox closes, then once more; return early if the store is refused."""
        try:
            self._store_until_closed()
        finally:
            self._release()

    def _store_until_closed(self) -> None:
        while not self._outbox.closing.is_set():
            self._outbox.wake.wait(self._pace.write_s)
            self._outbox.wake.clear()
            resting = self._failing and time.monotonic() - self._attempted_s < self._pace.retry_s
            if not resting and not self._attempt():
                return
        # A database that failed before is tried once more; one that fails only now may be busy.
        was_failing = self._failing
        deadline_s = time.monotonic() + self._pace.close_s
        while self._attempt() and self._failing and not was_failing:
            if time.monotonic() > deadline_s:
                return
            time.sleep(0.1)

    def _attempt(self) -> bool:
        """Store what is not stored yet; return False if no later attempt can succeed."""
        self._attempted_s = time.monotonic()
        try:
            self._store_pending()
        except StoreRefusedError as error:
            self._outbox.warn_once(self._job.id, error)
            return False
        except Exception as error:  # noqa: BLE001 - nothing that fails here may concern the job
            if not isinstance(error, NoSuchJobError):  # a deleted record: stored anew, no failure
                self._outbox.warn_once(self._job.id, error)
            self._failing = True
            self._created = False
            self._changes_stored = 0
            self._release()
        else:
            self._failing = False
        return True

    def _store_pending(self) -> None:
        changes = self._outbox.changes[:]  # before the reports: an end follows its last progress
        self._absorb_reports()
        if not self._created:
            self._create()
        for change in changes[self._changes_stored :]:
            if change.state.is_final:
                self._write_latest()  # a job that has ended takes no more progress
            self._make(change)
        self._write_latest()
        if time.monotonic() - self._written_s >= self._pace.heartbeat_s:
            self._store.heartbeat(self._job.id)
            self._written_s = time.monotonic()

    def _absorb_reports(self) -> None:
        """Take the reports out of the outbox: the last one counts, and the last of each metric."""
        report = None
        while self._outbox.reports:
            report = self._outbox.reports.popleft()
            if not self._samples:
                self._samples = (self._beginning(report),)
            self._latest = report
            self._latest_stored = False
            self._metrics |= public_metrics(report.metrics)
        if report is not None:
            self._samples = windowed(self._samples, Sample(report.done, report.at_s))

    def _beginning(self, first: Report) -> Sample:
        """Return where the rate's window begins.

        A job that reports before its first unit begins there; one that reports only after its
        first, perhaps long, unit began when it started running.
        """
        running_s = [c.at_s for c in self._outbox.changes if c.state is State.RUNNING]
        if first.done == first.resumed or not running_s:
            return Sample(first.done, first.at_s)
        return Sample(first.resumed, running_s[0])

    def _create(self) -> None:
        job = self._job
        self._store.prepare()
        self._held = self._store.hold_open()
        self._store.create(
            job.id, kind=job.kind, unit=job.unit, host=job.host, pid=job.pid, config=job.config
        )
        self._created = True
        self._written_s = time.monotonic()
        self._latest_stored = self._latest is None

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            with suppress(Exception):
                held.close()

    def _make(self, change: Change) -> None:
        try:
            self._store.transition(self._job.id, change.state, change.reason)
        except IllegalTransitionError as error:
            _log.debug("%s", error)  # made already, or a cancellation came first: the stored stands
        self._changes_stored += 1
        self._written_s = time.monotonic()

    def _write_latest(self) -> None:
        if self._latest is None or self._latest_stored:
            return
        latest = self._latest
        rate = rate_per_s(self._samples)
        self._store.update(
            self._job.id,
            done=latest.done,
            total=latest.total,
            resumed=latest.resumed,
            rate=rate,
            eta_s=eta_s(latest.done, latest.total, rate),
            metrics=self._metrics,
        )
        self._latest_stored = True
        self._written_s = time.monotonic()
