"""Reads job records: SQLAlchemy Core, one code path for SQLite and PostgreSQL."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, TypeGuard

from sqlalchemy import Connection, bindparam, func, select

from service.jobs import JobRecord, Observed, Periods, State, Status, is_job_id
from service.records.connections.database import Database
from service.records.events import Events, Log, read_events, read_log
from service.records.kind_summary import KindSummary, summarize
from service.records.rank_rows import RankRecord, read_ranks
from service.records.schema import database_now, jobs_table, ranks_table
from service.records.series import Series, SeriesCache, SeriesName
from service.records.status_sql import status_column

_j = jobs_table.c
_FIELDS = tuple(field.name for field in fields(JobRecord) if field.name != "ranks")
_LONG = frozenset({"config", "environment", "artifacts"})
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
_TYPES: Mapping[str, Any] = {
    **dict.fromkeys(("id", "kind", "unit", "host", "reason", "resumed_from"), str),
    **dict.fromkeys(("state",), State),
    **dict.fromkeys(
        ("done", "total", "resumed", "pid", "attempt", "bytes", "version", "ranks"), int
    ),
    **dict.fromkeys(("rate", "eta_s"), (int, float)),
    **dict.fromkeys(("created", "heartbeat", "started", "ended", "progress_at"), datetime),
    **dict.fromkeys(("config",), dict),
}
_MAY_BE_ABSENT = frozenset(
    {"reason", "resumed_from", "total", "bytes", "rate", "eta_s", "started", "ended", "progress_at"}
)
_STATE = select(_j.state).where(_j.id == bindparam("job_id"))


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first, and the id after which the next page begins, None after the last."""

    jobs: tuple[Observed, ...]
    next_cursor: str | None


class JobReader:
    """The records of one database, read.

    Every method raises `DatabaseError` when the database cannot be used now, and
    `DatabaseRefusedError` when it is of another schema version.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._series = SeriesCache()

    @property
    def database_name(self) -> str:
        """Which database is read: a file, or host and name."""
        return self._database.name

    @property
    def is_local(self) -> bool:
        """Whether reading is a matter of microseconds: a file, no server in between."""
        return self._database.is_local

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
        status: Status | None = None,
        kind: str | None = None,
        beginning: str | None = None,
        periods: Periods | None = None,
    ) -> Page:
        """Return up to `limit` jobs, newest first, older than the job `cursor`.

        Those whose state, kind, or beginning of the id is the given one, where one is.
        `state` is as stored, `status` as it reads by `periods`.

        Paged by key: a job that begins meanwhile neither repeats a row nor hides one. The rows
        lack config, environment and artifacts.
        """
        query = _ROWS
        if cursor is not None:
            query = query.where(_j.id < cursor)
        if state is not None:
            query = query.where(_j.state == state)
        if status is not None:
            query = query.where(status_column(periods or Periods()) == status.value)
        if kind is not None:
            query = query.where(_j.kind == kind)
        if beginning is not None:  # no digit lies above f
            query = query.where(_j.id >= beginning, _j.id < f"{beginning}g")
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
            return self._series.names(connection, job_id)

    def metrics(
        self, job_id: str, names: Sequence[str], points: int = 500
    ) -> tuple[Series, ...] | None:
        """Return metrics in at most `points` entries each; None if there is no such job."""
        with self._database.reading() as connection:
            if not _holds(connection, job_id):
                return None
            return tuple(self._series.series(connection, job_id, name, points) for name in names)

    def events(
        self, job_id: str, after: int = 0, limit: int = 200, *, newest: bool = False
    ) -> Events | None:
        """Return a job's events of ids above `after`, oldest first; None if it does not exist."""
        with self._database.reading() as connection:
            if not _holds(connection, job_id):
                return None
            return read_events(connection, job_id, after, limit, newest=newest)

    def log(self, job_id: str) -> Log | None:
        """Return the end of a job's log; None if there is no such job."""
        with self._database.reading() as connection:
            if not _holds(connection, job_id):
                return None
            return read_log(connection, job_id)

    def summary(self, periods: Periods) -> tuple[KindSummary, ...]:
        """Return all jobs in a few figures by kind."""
        with self._database.reading() as connection:
            return () if connection is None else summarize(connection, periods)

    def check(self) -> None:
        """Raise if records cannot be read; a database that no job has made yet is well."""
        self._database.check()


def _holds(connection: Connection | None, job_id: str) -> TypeGuard[Connection]:
    """Whether the database is there and holds the job."""
    if connection is None or not is_job_id(job_id):
        return False
    return stored_state(connection, job_id) is not None


def stored_state(connection: Connection, job_id: str) -> State | None:
    """Return the state of a job; None if there is no such job."""
    state: State | None = connection.scalar(_STATE, {"job_id": job_id})
    return state


def _observed(row: Any) -> Observed:
    """Return a row as a record; what of it nothing can be made of is replaced and said.

    One damaged row must not keep a reader from all the others.
    """
    values = row._asdict()
    now = values.pop("now")
    known = {name: value for name, value in values.items() if _is_sound(name, value)}
    damaged = sorted(values.keys() - known.keys())
    if damaged:
        instant = known.get("created") or known.get("heartbeat") or datetime.fromtimestamp(0, UTC)
        missing = {"kind": "?", "unit": "", "done": 0, "created": instant, "heartbeat": instant}
        known = missing | known | {"reason": f"the record is damaged: {', '.join(damaged)}"}
        known.setdefault("state", State.FAILED)
    return Observed(JobRecord(**known), now)


def _is_sound(name: str, value: object) -> bool:
    """Whether `value` is what a record's field of that name holds: SQLite itself asks nothing."""
    if name == "metrics":
        return isinstance(value, dict) and all(
            each is None or (isinstance(each, int | float) and math.isfinite(each))
            for each in value.values()
        )
    if name == "artifacts":
        return isinstance(value, list) and all(
            isinstance(each, dict) and {"name", "size", "sha256"} <= each.keys() for each in value
        )
    if name == "environment":
        return isinstance(value, dict) and all(
            each is None or isinstance(each, str | bool) for each in value.values()
        )
    if value is None:
        return name in _MAY_BE_ABSENT
    return isinstance(value, _TYPES[name])
