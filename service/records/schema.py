"""The tables of the record, and the three things that SQLite and PostgreSQL spell differently."""

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from service.jobs import State

SCHEMA_VERSION = 3
DAMAGED: Any = "damaged"
"""Stands for a stored value that nothing can be made of."""


def lenient_json(text: str) -> object:
    """Return what the JSON `text` says, or `DAMAGED`."""
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return DAMAGED


class Instant(TypeDecorator[datetime]):
    """An aware UTC datetime, kept as seconds since 1970: one form that both databases order."""

    impl = Double
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> float | None:
        """Return the seconds since 1970."""
        return None if value is None else value.timestamp()

    def process_result_value(self, value: float | None, dialect: Dialect) -> datetime | None:
        """Return the instant in UTC."""
        if value is None:
            return None
        try:
            return datetime.fromtimestamp(value, UTC)
        except (TypeError, ValueError, OverflowError, OSError):
            damaged: datetime = DAMAGED  # the reader says which fields it can make nothing of
            return damaged


class Word(TypeDecorator[State]):
    """A job's state, kept as its word."""

    impl = String(16)
    cache_ok = True

    def process_bind_param(self, value: State | None, dialect: Dialect) -> str | None:
        """Return the state's word."""
        return None if value is None else value.value

    def process_result_value(self, value: str | None, dialect: Dialect) -> State | None:
        """Return the state of that word."""
        if value is None:
            return None
        try:
            return State(value)
        except ValueError:
            damaged: State = DAMAGED
            return damaged


class database_now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function it is
    """The database's own clock: jobs on several hosts share it, so their ages can be compared."""

    type = Instant()
    inherit_cache = True


@compiles(database_now, "sqlite")
def _now_in_sqlite(element: database_now, compiler: SQLCompiler, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(database_now, "postgresql")
def _now_in_postgresql(element: database_now, compiler: SQLCompiler, **kw: Any) -> str:
    # as in SQLite, one instant a statement; now() stands still within a transaction
    return "CAST(extract(epoch FROM statement_timestamp()) AS double precision)"


metadata = MetaData()

schema_table = Table("retort_schema", metadata, Column("version", Integer, nullable=False))

# the C collation: ids and names must sort by their bytes, whatever the database's language
_Id = String(32).with_variant(String(32, collation="C"), "postgresql")
_Name = String(64).with_variant(String(64, collation="C"), "postgresql")

jobs_table = Table(
    "jobs",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("kind", String, nullable=False),
    Column("unit", String, nullable=False),
    Column("state", Word, nullable=False),
    Column("reason", String),
    Column("attempt", Integer, nullable=False),
    Column("target", String(64)),  # the digest of kind and --out, by which a rerun is known
    Column("resumed_from", _Id),
    Column("done", BigInteger, nullable=False),
    Column("total", BigInteger),
    Column("resumed", BigInteger, nullable=False),
    Column("images_per_unit", Integer),
    Column("bytes", BigInteger),
    Column("rate", Double),
    Column("eta_s", Double),
    Column("metrics", JSON, nullable=False),
    Column("host", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("config", JSON, nullable=False),
    Column("environment", JSON, nullable=False),
    Column("artifacts", JSON, nullable=False),
    Column("created", Instant, nullable=False),
    Column("started", Instant),
    Column("ended", Instant),
    Column("heartbeat", Instant, nullable=False),
    Column("progress_at", Instant),
    Column("version", BigInteger, nullable=False),
    Index("jobs_by_target", "target", "id"),
)

ranks_table = Table(
    "ranks",
    metadata,
    Column("job", _Id, primary_key=True),
    Column("rank", Integer, primary_key=True, autoincrement=False),
    Column("host", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("state", Word, nullable=False),
    Column("done", BigInteger, nullable=False),
    Column("heartbeat", Instant, nullable=False),
    Column("progress_at", Instant),
    sqlite_with_rowid=False,
)

# without a row id a series lies in one piece of a SQLite file, in the order of its steps
metrics_table = Table(
    "metrics",
    metadata,
    Column("job", _Id, primary_key=True),
    Column("name", _Name, primary_key=True),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("time", Double, nullable=False),
    Column("value", Double),
    sqlite_with_rowid=False,
)

events_table = Table(
    "events",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("job", _Id, nullable=False),
    Column("time", Instant, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("text", String, nullable=False),
    # the writer's own count of what it says of itself, so that saying it twice is harmless
    Column("rank", Integer),
    Column("number", Integer),
    UniqueConstraint("job", "rank", "number"),
    Index("events_by_job", "job", "id"),
    sqlite_autoincrement=True,  # an id is never given twice
)

# apart from the jobs, whose rows are read by hundreds
logs_table = Table(
    "logs",
    metadata,
    Column("job", _Id, primary_key=True),
    Column("traceback", String),
    Column("lines", String, nullable=False),
)


def insert_or_not(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An insert into `table` that may meet a row of its key: both databases have ON CONFLICT.

    They spell it alike, and SQLAlchemy keeps the two apart.
    """
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table)
    return sqlite.insert(table)
