"""Reads and writes job records: SQLAlchemy Core, one code path for SQLite and PostgreSQL.

Every write is one short transaction, every state change a compare-and-set, every stamp of the
database's clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, Row, Select, case, insert, select, update

from service.database import Database, StoreError, open_database
from service.jobs import IllegalTransitionError, JobRecord, Observed, State, is_job_id
from service.schema import database_now, jobs_table

_COLUMNS = tuple(jobs_table.c[field.name] for field in fields(JobRecord))
_FINAL = tuple(state for state in State if state.is_final)


class NoSuchJobError(StoreError):
    """The database holds no job of that id."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"the job database holds no job {job_id}: it was deleted or replaced")


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first, and the cursor of the next page, None after the last."""

    jobs: tuple[Observed, ...]
    next_cursor: str | None


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

    def prepare(self) -> None:
        """Make the database and its tables where they are missing; writers call it first."""
        self._database.prepare()

    def hold_open(self) -> Connection | None:
        """Return a connection to keep, unused, and close when the job ends; None if none helps."""
        return self._database.hold_open()

    def create(
        self, job_id: str, *, kind: str, unit: str, host: str, pid: int, config: Mapping[str, Any]
    ) -> None:
        """Record a pending job.

        A second call with the same id changes nothing, so that a writer may repeat one whose
        answer was lost.
        """
        new = insert(jobs_table).values(
            id=job_id,
            kind=kind,
            unit=unit,
            host=host,
            pid=pid,
            config=dict(config),
            state=State.PENDING,
            done=0,
            resumed=0,
            metrics={},
            created=database_now(),
            heartbeat=database_now(),
        )
        with self._database.writing() as connection:
            if _stored_state(connection, job_id) is None:
                connection.execute(new)

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
    ) -> State:
        """Write progress and the last metrics, beat, and return the state as stored.

        A job that has ended is left as it is.

        Raises:
            NoSuchJobError: the database does not hold the job.
        """
        return self._write(
            job_id,
            done=done,
            total=total,
            resumed=resumed,
            rate=rate,
            eta_s=eta_s,
            metrics=dict(metrics),
            heartbeat=database_now(),
            progress_at=case(
                (jobs_table.c.done != done, database_now()), else_=jobs_table.c.progress_at
            ),
        )

    def heartbeat(self, job_id: str) -> State:
        """Say that the job lives, and return its state as stored.

        Raises:
            NoSuchJobError: the database does not hold the job.
        """
        return self._write(job_id, heartbeat=database_now())

    def transition(self, job_id: str, target: State, reason: str | None = None) -> None:
        """Make the job `target` if its stored state allows that: one compare-and-set.

        Raises:
            NoSuchJobError: the database does not hold the job.
            IllegalTransitionError: the stored state does not allow it; the error says which it is.
        """
        values: dict[str, Any] = {"state": target}
        if reason is not None:
            values["reason"] = reason
        if target is State.RUNNING:
            values |= {"started": database_now(), "heartbeat": database_now()}
        if target.is_final:
            values |= {"ended": database_now(), "heartbeat": database_now(), "eta_s": None}
        swap = update(jobs_table).where(
            jobs_table.c.id == job_id, jobs_table.c.state.in_(sorted(target.predecessors))
        )
        with self._database.writing() as connection:
            if connection.execute(swap.values(**values)).rowcount == 1:
                return
            current = _stored_state(connection, job_id)
        if current is None:
            raise NoSuchJobError(job_id)
        raise IllegalTransitionError(job_id, current, target)

    def get(self, job_id: str) -> Observed | None:
        """Return the job of that id, or None."""
        if not is_job_id(job_id):
            return None
        query = _records().where(jobs_table.c.id == job_id)
        with self._database.reading() as connection:
            row = None if connection is None else connection.execute(query).one_or_none()
        return None if row is None else _observed(row)

    def list(
        self,
        *,
        limit: int = 50,
        cursor: str | None = None,
        state: State | None = None,
        kind: str | None = None,
    ) -> Page:
        """Return up to `limit` jobs, newest first, older than `cursor`; none without a database.

        Paged by key: a job that begins meanwhile neither repeats a row nor hides one.
        """
        query = _records().order_by(jobs_table.c.id.desc())
        if cursor is not None:
            query = query.where(jobs_table.c.id < cursor)
        if state is not None:
            query = query.where(jobs_table.c.state == state)
        if kind is not None:
            query = query.where(jobs_table.c.kind == kind)
        with self._database.reading() as connection:
            # one row more than asked for tells whether a next page exists
            rows = () if connection is None else connection.execute(query.limit(limit + 1)).all()
        jobs = tuple(_observed(row) for row in rows[:limit])
        return Page(jobs, jobs[-1].record.id if len(rows) > limit else None)

    def check(self) -> None:
        """Raise if records cannot be read; a database that no job has made yet is well."""
        with self._database.reading():
            pass

    def _write(self, job_id: str, **values: Any) -> State:
        """Write to a job that has not ended, and return its state."""
        change = (
            update(jobs_table)
            .where(jobs_table.c.id == job_id, jobs_table.c.state.not_in(_FINAL))
            .values(**values)
            .returning(jobs_table.c.state)
        )
        with self._database.writing() as connection:
            changed: State | None = connection.scalar(change)
            state = changed or _stored_state(connection, job_id)
        if state is None:
            raise NoSuchJobError(job_id)
        return state


def _records() -> Select[Any]:
    return select(*_COLUMNS, database_now().label("now"))


def _stored_state(connection: Connection, job_id: str) -> State | None:
    state: State | None = connection.scalar(
        select(jobs_table.c.state).where(jobs_table.c.id == job_id)
    )
    return state


def _observed(row: Row[Any]) -> Observed:
    record = JobRecord(**{column.name: row._mapping[column] for column in _COLUMNS})
    return Observed(record, row.now)
