"""What the thread that stores a job's record writes: the first process all, the others a row."""

import logging
import time
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection

from service.jobs import IllegalTransitionError, State
from service.recording.environment import checkout
from service.recording.outbox import Change, JobIdentity, Outbox, Pace
from service.recording.outbox_writer import OutboxWriter
from service.records.events import Log
from service.records.job_store import JobStore

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


class RecordWriter(OutboxWriter):
    """Stores a job's record: rank 0's part."""

    def __init__(self, store: JobStore, job: JobIdentity, outbox: Outbox, pace: Pace) -> None:
        super().__init__(store, job, outbox, pace)
        self._created = False
        self._changes_stored = 0
        self._lines_stored = 0
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
                self._store_log()
            self._make(change)
        self._write_latest(changes)
        if self._is_due():
            self._store_log()
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
        self._lines_stored = 0

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            with suppress(Exception):
                held.close()

    def _store_log(self) -> None:
        outbox = self._outbox
        said = outbox.lines_said
        if said > self._lines_stored or outbox.traceback is not None:
            self._store.keep_log(self._job.id, Log(tuple(outbox.lines), outbox.traceback))
            self._lines_stored = said

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
        self._began_s = time.monotonic()

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
        age_s = time.monotonic() - self._began_s
        beaten = self._store.beat_rank(
            target, self._job.attempt, rank, said, known=self._found, age_s=age_s
        )
        if beaten is None:
            # a failed one must not wait to say why: its launcher may end it any moment
            self._too_early = None if rank.state is State.FAILED else _NO_FIRST
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
