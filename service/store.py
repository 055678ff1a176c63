"""Reads and writes job records: SQLAlchemy Core, one code path for SQLite and PostgreSQL.

Every write is one short transaction, every state change a compare-and-set, every stamp of the
database's clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeGuard

from sqlalchemy import Connection, bindparam, case, func, insert, select, update

from service.database import Database, StoreError, open_database
from service.events import Event, Said, add_said, add_state, read_events
from service.jobs import IllegalTransitionError, JobRecord, Observed, Periods, State, is_job_id
from service.ranks import Rank, RankRecord, beat, read_ranks
from service.schema import database_now, jobs_table, ranks_table
from service.series import Point, Series, SeriesName, add_points, read_series, series_names
from service.summary import KindSummary, summarize

_j = jobs_table.c
_FIELDS = tuple(field.name for field in fields(JobRecord) if field.name != "ranks")
_LONG = frozenset({"config", "environment", "artifacts"})
_FINAL = tuple(state for state in State if state.is_final)
_READ = (
    database_now().label("now"),
    select(func.count())
    .select_from(ranks_table)
    .where(ranks_table.c.job == _j.id)
    .scalar_subquery()
    .label("ranks"),
)
_ONE = select(*(_j[name] for name in _FIELDS), *_READ).where(_j.id == bindparam("job_id"))
_ROWS = select(*(_j[name] for name in _FIELDS if name not in _LONG), *_READ).order_by(_j.id.desc())
_STATE = select(_j.state).where(_j.id == bindparam("job_id"))


class NoSuchJobError(StoreError):
    """The database holds no job of that id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"the job database holds no job {job_id}: it was deleted or replaced")


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first, and the id after which the next page begins, None after the last."""

    jobs: tuple[Observed, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Beaten:
    """The job that a process belongs to, and its stored state."""

    job_id: str
    state: State


def open_store(url: str) -> "JobStore":
    """Return the store at `url`; nothing is connected to or created yet.

    Raises:
        StoreRefusedError: the URL names neither SQLite nor PostgreSQL, or a driver is missing.
    """
    return JobStore(open_database(url))


class JobStore:
    """The records of one database.

    Every method raises `StoreError` when the database cannot be used now, and `StoreRefusedError`
    when it is of another schema version.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def is_local(self) -> bool:
        """Whether reading is a matter of microseconds: a file, no server in between."""
        return self._database.is_local

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
            if _stored_state(connection, job_id) is None:
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
            current = _stored_state(connection, job_id)
        if current is None:
            raise NoSuchJobError(job_id)
        raise IllegalTransitionError(job_id, current, target)

    def request_cancel(self, job_id: str) -> Observed | None:
        """Ask a job to stop, and return it; None if there is none. Asking twice is asking once.

        The job finds it with its next heartbeat, stops after its step or block, and saves.

        Raises:
            IllegalTransitionError: the job has ended.
        """
        if self.get(job_id) is None:
            return None
        try:
            self.transition(job_id, State.CANCELLING, "cancellation was asked for")
        except IllegalTransitionError as error:
            if error.current is not State.CANCELLING:
                raise
        return self.get(job_id)

    def beat_rank(
        self,
        target: str,
        attempt: int,
        rank: Rank,
        said: Sequence[Said] = (),
        *,
        known: str | None = None,
    ) -> Beaten | None:
        """Write the row of a process other than the first, in the newest job of that target.

        A job that has ended is left for the one `known` before; None where there is neither.
        """
        newest = select(func.max(_j.id)).where(
            _j.target == target, _j.attempt == attempt, _j.state.not_in(_FINAL)
        )
        with self._database.writing() as connection:
            job_id: str | None = connection.scalar(newest) or known
            state = None if job_id is None else _stored_state(connection, job_id)
            if job_id is None or state is None:
                return None
            if said:
                connection.execute(_next_version(job_id))
            beat(connection, job_id, rank)
            add_said(connection, job_id, rank.rank, said)
        return Beaten(job_id, state)

    def get(self, job_id: str) -> Observed | None:
        """Return the job of that id, or None."""
        if not is_job_id(job_id):
            return None
        with self._database.reading() as connection:
            if connection is None:
                return None
            row = connection.execute(_ONE, {"job_id": job_id}).one_or_none()
        return None if row is None else _observed(row)

    def list(
        self,
        *,
        limit: int = 50,
        cursor: str | None = None,
        state: State | None = None,
        kind: str | None = None,
    ) -> Page:
        """Return up to `limit` jobs, newest first, older than the job `cursor`.

        Paged by key: a job that begins meanwhile neither repeats a row nor hides one. The rows
        lack config, environment and artifacts.
        """
        query = _ROWS
        if cursor is not None:
            query = query.where(_j.id < cursor)
        if state is not None:
            query = query.where(_j.state == state)
        if kind is not None:
            query = query.where(_j.kind == kind)
        with self._database.reading() as connection:
            # one row more than asked for tells whether a next page exists
            rows = () if connection is None else connection.execute(query.limit(limit + 1)).all()
        jobs = tuple(_observed(row) for row in rows[:limit])
        return Page(jobs, jobs[-1].record.id if len(rows) > limit else None)

    def ranks(self, job_id: str) -> tuple[RankRecord, ...] | None:
        """Return the processes of a job by rank; None if there is no such job."""
        with self._database.reading() as connection:
            if not _holds(connection, job_id):
                return None
            return read_ranks(connection, job_id)

    def metric_names(self, job_id: str) -> tuple[SeriesName, ...] | None:
        """Return which metrics a job has points of; None if there is no such job."""
        with self._database.reading() as connection:
            if not _holds(connection, job_id):
                return None
            return series_names(connection, job_id)

    def metrics(
        self, job_id: str, names: Sequence[str], points: int = 500
    ) -> tuple[Series, ...] | None:
        """Return metrics in at most `points` entries each; None if there is no such job."""
        with self._database.reading() as connection:
            if not _holds(connection, job_id):
                return None
            return tuple(read_series(connection, job_id, name, points) for name in names)

    def events(self, job_id: str, after: int = 0, limit: int = 200) -> tuple[Event, ...] | None:
        """Return a job's events of ids above `after`, oldest first; None if it does not exist."""
        with self._database.reading() as connection:
            if not _holds(connection, job_id):
                return None
            return read_events(connection, job_id, after, limit)

    def summary(self, periods: Periods) -> tuple[KindSummary, ...]:
        """Return all jobs in a few figures by kind."""
        with self._database.reading() as connection:
            return () if connection is None else summarize(connection, periods)

    def check(self) -> None:
        """Raise if records cannot be read; a database that no job has made yet is well."""
        self._database.check()

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
            .where(_j.state.not_in(_FINAL))
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
            state = changed or _stored_state(connection, job_id)
        if state is None:
            raise NoSuchJobError(job_id)
        return state


def _next_version(job_id: str) -> Any:
    return update(jobs_table).where(_j.id == job_id).values(version=_j.version + 1)


def _holds(connection: Connection | None, job_id: str) -> TypeGuard[Connection]:
    """Whether the database is there and holds the job."""
    if connection is None or not is_job_id(job_id):
        return False
    return _stored_state(connection, job_id) is not None


def _stored_state(connection: Connection, job_id: str) -> State | None:
    state: State | None = connection.scalar(_STATE, {"job_id": job_id})
    return state


def _observed(row: Any) -> Observed:
    values = row._asdict()
    now = values.pop("now")
    return Observed(JobRecord(**values), now)
