"""Reads and writes job records: SQLAlchemy Core, one code path for SQLite and PostgreSQL.

Every write is one short transaction, every state change a compare-and-set, every stamp of the
database's clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, case, func, insert, select, update

from service.jobs import FINAL_STATES, IllegalTransitionError, Observed, Periods, State, Status
from service.records.connections.database import open_database
from service.records.connections.engines import DatabaseError
from service.records.events import Log, Said, add_said, add_state, write_log
from service.records.rank_rows import Rank, beat, job_of
from service.records.reader import JobReader, stored_state
from service.records.removal import remove_job
from service.records.schema import database_now, jobs_table
from service.records.series import Point, add_points

_j = jobs_table.c


class NoSuchJobError(DatabaseError):
    """The database holds no job of that id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"the job database holds no job {job_id}: it was deleted or replaced")


class JobLivesError(ValueError):
    """A job's record cannot be removed while the job may still write it."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"job {job_id} has not ended: cancel it, or wait until it reads as crashed"
        )


@dataclass(frozen=True, slots=True)
class JoinedJob:
    """The job that a process belongs to, and its stored state."""

    job_id: str
    state: State


def open_store(url: str) -> "JobStore":
    """Return the store at `url`; nothing is connected to or created yet.

    Raises:
        DatabaseRefusedError: the URL names neither SQLite nor PostgreSQL, or a driver is missing.
    """
    return JobStore(open_database(url))


class JobStore(JobReader):
    """The records of one database, read and written."""

    def prepare(self) -> None:
        """Make the database and its tables where they are missing; writers call it first."""
        self._database.prepare()

    def hold_open(self) -> Connection | None:
        """Return a connection to keep, unused, and close when the job ends; None if none helps."""
        return self._database.hold_open()

    def create(
        self,
        job_id: str,
        *,
        kind: str,
        unit: str,
        host: str,
        pid: int,
        config: Mapping[str, Any],
        environment: Mapping[str, Any] | None = None,
        attempt: int = 0,
        target: str | None = None,
        images_per_unit: int | None = None,
    ) -> None:
        """Record a pending job; it resumes the latest earlier one of the same `target`, if any.

        A second call with the same id changes nothing, so that a writer may repeat one whose
        answer was lost.
        """
        earlier = select(func.max(_j.id)).where(_j.target == target, _j.id < job_id)
        new = insert(jobs_table).values(
            id=job_id,
            kind=kind,
            unit=unit,
            host=host,
            pid=pid,
            config=dict(config),
            environment=dict(environment or {}),
            artifacts=[],
            attempt=attempt,
            target=target,
            resumed_from=None if target is None else earlier.scalar_subquery(),
            images_per_unit=images_per_unit,
            state=State.PENDING,
            done=0,
            resumed=0,
            metrics={},
            created=database_now(),
            heartbeat=database_now(),
            version=0,
        )
        with self._database.writing() as connection:
            if stored_state(connection, job_id) is None:
                connection.execute(new)
                add_state(connection, job_id, State.PENDING.value)

    def update(
        self,
        job_id: str,
        *,
        done: int,
        total: int | None,
        resumed: int,
        rate: float | None,
        eta_s: float | None,
        metrics: Mapping[str, float | None],
        bytes_: int | None = None,
        rank: Rank | None = None,
        points: Sequence[Point] = (),
        said: Sequence[Said] = (),
    ) -> State:
        """Write progress and the last metrics, beat, and return the state as stored.

        A job that has ended is left as it is.

        Raises:
            NoSuchJobError: the database does not hold the job.
        """
        values = {
            "done": done,
            "total": total,
            "resumed": resumed,
            "rate": rate,
            "eta_s": eta_s,
            "metrics": dict(metrics),
            "bytes": bytes_,
            "progress_at": case((_j.done != done, database_now()), else_=_j.progress_at),
        }
        return self._write(job_id, values, rank, points, said)

    def heartbeat(
        self,
        job_id: str,
        *,
        rank: Rank | None = None,
        points: Sequence[Point] = (),
        said: Sequence[Said] = (),
    ) -> State:
        """Say that the job lives, and return its state as stored.

        Raises:
            NoSuchJobError: the database does not hold the job.
        """
        return self._write(job_id, {}, rank, points, said)

    def transition(
        self,
        job_id: str,
        target: State,
        reason: str | None = None,
        *,
        rank: Rank | None = None,
        artifacts: Sequence[Mapping[str, object]] = (),
    ) -> None:
        """Make the job `target` if its stored state allows that: one compare-and-set.

        Raises:
            NoSuchJobError: the database does not hold the job.
            IllegalTransitionError: the stored state does not allow it; the error says which it is.
        """
        values: dict[str, Any] = {"state": target, "version": _j.version + 1}
        if reason is not None:
            values["reason"] = reason
        if target is State.RUNNING:
            values |= {"started": database_now(), "heartbeat": database_now()}
        if target.is_final:
            values |= {"ended": database_now(), "heartbeat": database_now(), "eta_s": None}
            values["artifacts"] = [dict(artifact) for artifact in artifacts]
        swap = update(jobs_table).where(_j.id == job_id, _j.state.in_(sorted(target.predecessors)))
        with self._database.writing() as connection:
            if connection.execute(swap.values(**values)).rowcount == 1:
                add_state(connection, job_id, target.value + (f": {reason}" if reason else ""))
                if rank is not None:
                    beat(connection, job_id, rank)
                return
            current = stored_state(connection, job_id)
        if current is None:
            raise NoSuchJobError(job_id)
        raise IllegalTransitionError(job_id, current, target)

    def request_cancel(self, job_id: str, periods: Periods | None = None) -> Observed | None:
        """Ask a job to stop, and return it; None if there is none. Asking twice is asking once.

        The job finds it with its next heartbeat, stops after its step or block, and saves. One
        that reads as crashed will not look: it is cancelled at once, and should it live after
        all, it finds that.

        Raises:
            IllegalTransitionError: the job has ended.
        """
        found = self.get(job_id)
        if found is None:
            return None
        crashed = found.status(Periods() if periods is None else periods) is Status.CRASHED
        try:
            self.transition(job_id, State.CANCELLING, "cancellation was asked for")
        except IllegalTransitionError as error:
            if error.current is not State.CANCELLING:
                raise
        if crashed:
            self.transition(job_id, State.CANCELLED, "cancelled after it had crashed")
        return self.get(job_id)

    def remove(self, job_id: str, periods: Periods) -> bool:
        """Remove a job's record, ranks, metrics and events; False if there is no such job.

        Raises:
            JobLivesError: it has not ended, and may still beat.
        """
        if self.get(job_id) is None:
            return False
        with self._database.writing() as connection:
            removed = remove_job(connection, job_id, periods.crashed_s)
        if not removed:
            raise JobLivesError(job_id)
        return True

    def keep_log(self, job_id: str, log: Log) -> None:
        """Store the end of a job's log, in the place of what was stored of it before."""
        with self._database.writing() as connection:
            write_log(connection, job_id, log)

    def beat_rank(
        self,
        target: str,
        attempt: int,
        rank: Rank,
        said: Sequence[Said] = (),
        *,
        known: str | None = None,
        age_s: float = 0.0,
    ) -> JoinedJob | None:
        """Write the row of a process other than the first in its job: see `ranks.job_of`."""
        with self._database.writing() as connection:
            job_id = job_of(connection, target, attempt, rank, known=known, age_s=age_s)
            state = None if job_id is None else stored_state(connection, job_id)
            if job_id is None or state is None:
                return None
            if said:
                connection.execute(_next_version(job_id))
            beat(connection, job_id, rank)
            add_said(connection, job_id, rank.rank, said)
        return JoinedJob(job_id, state)

    def _write(
        self,
        job_id: str,
        values: Mapping[str, Any],
        rank: Rank | None,
        points: Sequence[Point],
        said: Sequence[Said],
    ) -> State:
        """Write to a job that has not ended, and return its state."""
        change = (
            _next_version(job_id)
            .where(_j.state.not_in(FINAL_STATES))
            .values(**values, heartbeat=database_now())
            .returning(_j.state)
        )
        with self._database.writing() as connection:
            changed: State | None = connection.scalar(change)
            if changed is not None:
                if rank is not None:
                    beat(connection, job_id, rank)
                add_points(connection, job_id, points)
                add_said(connection, job_id, 0 if rank is None else rank.rank, said)
            state = changed or stored_state(connection, job_id)
        if state is None:
            raise NoSuchJobError(job_id)
        return state


def _next_version(job_id: str) -> Any:
    return update(jobs_table).where(_j.id == job_id).values(version=_j.version + 1)
