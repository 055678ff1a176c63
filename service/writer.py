"""The thread that stores a job's record: drains the outbox, retries, and keeps failures to itself.

Whatever it stores may be stored twice without harm: creating is idempotent, a state change that
was already made, or that the stored state no longer allows, is left alone, and points and events
have names of their own. So after any failure it simply begins anew: the record of a database that
was deleted comes back.
"""

import logging
import time
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection

from service.database import StoreRefusedError
from service.environment import checkout
from service.events import Said
from service.jobs import IllegalTransitionError, State
from service.outbox import Change, JobIdentity, Outbox, Pace
from service.ranks import Rank
from service.store import JobStore, NoSuchJobError
from service.tally import Tally

_log = logging.getLogger(__name__)

_NO_FIRST = (
    "rank 0 has recorded no such job in this database: let RETORT_DB name the same one for all "
    "ranks, on several hosts postgresql://user@host/name"
)


def store_outbox(store: JobStore, job: JobIdentity, outbox: Outbox, pace: Pace) -> None:
    """Store a process's outbox until it closes: what the recorder's thread does.

    The writer and its connection are known to this thread's stack alone, which a forked child
    never unwinds: closing a connection of its parent is what SQLite forbids a child.
    """
    writer = RecordWriter if job.rank == 0 else RankWriter
    writer(store, job, outbox, pace).run()


class OutboxWriter:
    """Stores one process's outbox, in one thread: when to, and what to do where it fails."""

    def __init__(self, store: JobStore, job: JobIdentity, outbox: Outbox, pace: Pace) -> None:
        self._store = store
        self._job = job
        self._outbox = outbox
        self._pace = pace
        self._tally = Tally()
        self._stored = True
        self._remarks_stored = -1
        self._failing = False
        self._too_early: str | None = None
        """Why there is nowhere to store yet, though nothing fails."""
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
        # a little less than the job waits: it does not know what is amiss
        deadline_s = time.monotonic() + 0.8 * self._pace.close_s
        while self._attempt() and (self._too_early or (self._failing and not was_failing)):
            if time.monotonic() > deadline_s:
                if self._too_early:
                    self._outbox.warn_once(self._job.id, self._too_early)
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
            self._begin_anew()
        else:
            self._failing = False
        return True

    def _store_pending(self) -> None:
        raise NotImplementedError

    def _begin_anew(self) -> None:
        self._stored = self._tally.latest is None
        self._remarks_stored = -1
        self._release()

    def _release(self) -> None:
        """Let go of what is kept open."""

    def _is_due(self) -> bool:
        return time.monotonic() - self._written_s >= self._pace.heartbeat_s

    def _rank(self, changes: list[Change]) -> Rank:
        job = self._job
        ends = [change.state for change in changes if change.state.is_final]
        return Rank(job.rank, job.host, job.pid, (ends or [State.RUNNING])[0], self._tally.own)

    def _said(self) -> list[Said]:
        now_s = time.monotonic()
        return [
            Said(remark.number, remark.kind, remark.text, now_s - remark.at_s)
            for remark in tuple(self._outbox.remarks)
            if remark.number > self._remarks_stored
        ]

    def _obey(self, state: State) -> None:
        # to another rank than the first the whole cancellation may have passed between two beats
        if state in (State.CANCELLING, State.CANCELLED):
            self._outbox.cancel_requested.set()


class RecordWriter(OutboxWriter):
    """Stores a job's record: rank 0's part."""

    def __init__(self, store: JobStore, job: JobIdentity, outbox: Outbox, pace: Pace) -> None:
        super().__init__(store, job, outbox, pace)
        self._created = False
        self._changes_stored = 0
        self._held: Connection | None = None

    def _store_pending(self) -> None:
        changes = self._outbox.changes[:]  # before the reports: an end follows its last progress
        if self._tally.absorb(self._outbox):
            self._stored = False
        if not self._created:
            self._create()
        for change in changes[self._changes_stored :]:
            if change.state.is_final:
                self._write_latest(changes)  # a job that has ended takes no more progress
            self._make(change)
        self._write_latest(changes)
        if self._is_due():
            self._obey(self._store.heartbeat(self._job.id, rank=self._rank(changes)))
            self._written_s = time.monotonic()

    def _create(self) -> None:
        job = self._job
        self._store.prepare()
        self._held = self._store.hold_open()
        self._store.create(
            job.id,
            kind=job.kind,
            unit=job.unit,
            host=job.host,
            pid=job.pid,
            config=job.config,
            environment={**checkout(), **job.environment},
            attempt=job.attempt,
            target=job.target,
            images_per_unit=job.images_per_unit,
        )
        self._created = True
        self._written_s = time.monotonic()

    def _begin_anew(self) -> None:
        super()._begin_anew()
        self._created = False
        self._changes_stored = 0

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            with suppress(Exception):
                held.close()

    def _make(self, change: Change) -> None:
        try:
            self._store.transition(
                self._job.id,
                change.state,
                change.reason,
                rank=self._rank([change]),
                artifacts=self._outbox.artifacts,
            )
        except IllegalTransitionError as error:
            # made already, or a cancellation came first: the stored stands
            _log.debug("%s", error)
            self._obey(error.current)
        self._changes_stored += 1
        self._written_s = time.monotonic()

    def _write_latest(self, changes: list[Change]) -> None:
        said = self._said()
        latest = self._tally.latest
        if self._stored and not said:
            return
        points = self._tally.points(time.monotonic())
        # the end's own row is written with it
        also: dict[str, Any] = {"rank": self._rank([]), "points": points, "said": said}
        if latest is None:
            state = self._store.heartbeat(self._job.id, **also)
        else:
            state = self._store.update(
                self._job.id,
                done=latest.done,
                total=latest.total,
                resumed=latest.resumed,
                rate=self._tally.rate,
                eta_s=self._tally.eta_s,
                metrics=self._tally.metrics,
                bytes_=self._tally.bytes,
                **also,
            )
        self._obey(state)
        self._tally.points_are_stored(len(points))
        self._remarks_stored = max([self._remarks_stored, *(one.number for one in said)])
        self._stored = True
        self._written_s = time.monotonic()


class RankWriter(OutboxWriter):
    """Stores the row of a process other than the first, in the job that the first recorded."""

    def __init__(self, store: JobStore, job: JobIdentity, outbox: Outbox, pace: Pace) -> None:
        super().__init__(store, job, outbox, pace)
        self._found: str | None = None
        self._end_stored = False
        self._prepared = False

    def _store_pending(self) -> None:
        changes = self._outbox.changes[:]
        if self._tally.absorb(self._outbox):
            self._stored = False
        rank, said = self._rank(changes), self._said()
        ends = rank.state.is_final and not self._end_stored
        target, due = self._job.target, self._is_due() or not self._stored
        if target is None or not (due or ends or said):
            return
        if not self._prepared:
            self._store.prepare()  # the first process may not have come so far
            self._prepared = True
        beaten = self._store.beat_rank(target, self._job.attempt, rank, said, known=self._found)
        if beaten is None:
            self._too_early = _NO_FIRST
            return
        self._too_early = None
        if beaten.job_id != self._found:
            # another launch's job until its own first process had recorded this one
            self._found, self._remarks_stored = beaten.job_id, -1
        else:
            self._remarks_stored = max([self._remarks_stored, *(one.number for one in said)])
        self._obey(beaten.state)
        self._stored = True
        self._end_stored = rank.state.is_final
        self._written_s = time.monotonic()

    def _begin_anew(self) -> None:
        super()._begin_anew()
        self._too_early = None
        self._prepared = False
