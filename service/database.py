"""Connections to the database of job records: a SQLite file by default, PostgreSQL by URL.

A connection lives only as long as one call, so that a file that was deleted or replaced is noticed
at the next one.
"""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, func, insert, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import NullPool

from service.schema import SCHEMA_VERSION, metadata, schema_table

BUSY_TIMEOUT_S = 5.0
"""How long a call waits for another writer's lock, or for a server to answer."""
_CREATION_LOCK = 0x5245_544F_5254
"""The PostgreSQL advisory lock under which the tables are made: 'RETORT' in ASCII."""
_EXPECTED = (
    "expected sqlite:////absolute/path/jobs.db or postgresql://user@host/name; set RETORT_DB to one"
)


class StoreError(Exception):
    """The database cannot be used now: locked, unreachable, damaged."""


class StoreRefusedError(StoreError):
    """The database cannot be used at all: a URL, driver or schema that Retort does not know."""


def default_url() -> str:
    """Return RETORT_DB, or the URL of `.retort/jobs.db` in the working directory."""
    return os.environ.get("RETORT_DB") or sqlite_url(Path.cwd() / ".retort" / "jobs.db")


def sqlite_url(file: Path) -> str:
    """Return the URL of a SQLite file, whatever characters its path has."""
    return URL.create("sqlite", database=str(file)).render_as_string()


def open_database(url: str) -> "Database":
    """Return the database at `url`; nothing is connected to or created yet.

    Raises:
        StoreRefusedError: the URL names neither SQLite nor PostgreSQL, or a driver is missing.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # not repeated: it may hold a password
        raise StoreRefusedError(
            f"the URL of the job database cannot be read: {_EXPECTED}"
        ) from error
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:" or parsed.query:
            raise StoreRefusedError(f"the job database must be a plain SQLite file: {_EXPECTED}")
        file = Path(parsed.database).absolute()
        return Database(_sqlite_engine(file), file)
    if backend in ("postgresql", "postgres"):
        return Database(_postgresql_engine(parsed), None)
    raise StoreRefusedError(f"the URL of the job database is of {backend!r}: {_EXPECTED}")


class Database:
    """Opens one connection a call, for writing or for reading."""

    def __init__(self, engine: Engine, file: Path | None) -> None:
        self._engine = engine
        self._file = file

    def prepare(self) -> None:
        """Make the folder, the file and the tables where they are missing; check their version."""
        with _as_store_errors():
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                _make_wal_file(self._file)
        with self.writing() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_CREATION_LOCK)))
            metadata.create_all(connection)
            if not _has_schema(connection):
                connection.execute(insert(schema_table).values(version=SCHEMA_VERSION))

    def hold_open(self) -> Connection | None:
        """Return a connection that a writer keeps, unused, until its job ends; None if none helps.

        The last connection that leaves a SQLite file locks all others out while it empties the WAL.
        With one that stays that is not at every write, where a process that is stopped at that
        moment would lock every reader out for as long.
        """
        if self._file is None:
            return None
        with _as_store_errors():
            connection = self._engine.connect()
            connection.scalar(select(schema_table.c.version))  # a file is entered when it is read
            connection.rollback()
        return connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection within one transaction that holds the write lock from its start."""
        with (
            _as_store_errors(),
            self._engine.connect().execution_options(retort_writes=True) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection | None]:
        """Yield a connection, or None where no job has recorded itself yet."""
        if self._file is not None and not self._file.exists():
            yield None
            return
        with _as_store_errors(), self._engine.connect() as connection:
            yield connection if _has_schema(connection) else None


def _has_schema(connection: Connection) -> bool:
    try:
        version = connection.scalar(select(schema_table.c.version))
    except DBAPIError:
        connection.rollback()
        if inspect(connection).has_table(schema_table.name):
            raise
        return False
    if version not in (None, SCHEMA_VERSION):
        raise StoreRefusedError(
            f"the job database has schema {version}, this Retort expects {SCHEMA_VERSION}: "
            "use the Retort that made it, or set RETORT_DB to another database"
        )
    return version is not None


@contextmanager
def _as_store_errors() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:  # `orig` alone: the rest repeats the statement and its values
        raise StoreError(f"the job database cannot be used: {error.orig}") from error
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"the job database cannot be used: {error}") from error


def _sqlite_engine(file: Path) -> Engine:
    def connect() -> sqlite3.Connection:
        # mode=rw: only `prepare` makes a file, so that a reader never leaves an empty one behind
        connection = sqlite3.connect(
            f"{file.as_uri()}?mode=rw",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,  # transactions are begun below, not by the driver's guess
            check_same_thread=False,
        )
        connection.execute("PRAGMA synchronous=NORMAL")  # WAL: safe against a killed process
        return connection

    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("retort_writes", False)
        # a transaction that reads first and then writes would fail at once where another one wrote
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
    event.listen(engine, "begin", begin)
    return engine


def _postgresql_engine(url: URL) -> Engine:
    connect = {"connect_timeout": round(BUSY_TIMEOUT_S)}
    try:
        return create_engine(
            url.set(drivername="postgresql+psycopg"), connect_args=connect, poolclass=NullPool
        )
    except ModuleNotFoundError as error:
        raise StoreRefusedError(
            "a PostgreSQL job database needs the driver psycopg 3: pip install 'psycopg[binary]'"
        ) from error


def _make_wal_file(file: Path) -> None:
    """Make `file` if it is missing and set it to WAL, in which readers never wait for a writer."""
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        with closing(sqlite3.connect(file, timeout=BUSY_TIMEOUT_S)) as connection:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
            except sqlite3.OperationalError as error:
                # this statement does not wait for a lock: two jobs that start at once would fail
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                    raise
            else:
                return
        time.sleep(0.02)
