"""Connections to the database of job records: a SQLite file by default, PostgreSQL by URL.

A writer's connection lives only as long as one call; a reader's is kept, and left for a new one
where the file was deleted or replaced since.
"""

import math
import os
import sqlite3
import time
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, insert, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool, QueuePool

from service.records.migrations import OLDEST_VERSION, migrate
from service.records.mounts import network_mount
from service.records.schema import SCHEMA_VERSION, lenient_json, metadata, schema_table

BUSY_TIMEOUT_S = 5.0
"""How long a call waits for another writer's lock, or for a server to answer."""
READ_TIMEOUT_S = 1.0
"""How long a reader waits, which no writer in WAL mode makes it do."""
_VERSION_STANDS_S = 1.0
_CREATION_LOCK = 0x5245_544F_5254
"""The PostgreSQL advisory lock under which the tables are made: 'RETORT' in ASCII."""
_EXPECTED = (
    "expected sqlite:////absolute/path/jobs.db, postgresql://user@host/name or the path of a "
    "SQLite file; set RETORT_DB to one"
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
    if "://" not in url and url.endswith((".db", ".sqlite", ".sqlite3")):
        url = sqlite_url(Path(url))
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
        _refuse_network_mount(file)
        return Database(_sqlite_writer(file), _sqlite_reader(file), file, str(file))
    if backend in ("postgresql", "postgres"):
        pooled = {"poolclass": QueuePool, "pool_size": 4, "max_overflow": 12, "pool_timeout": 5.0}
        reader = _postgresql_engine(parsed, pool_pre_ping=True, **pooled)
        name = f"postgresql://{parsed.host or 'localhost'}/{parsed.database or ''}"
        return Database(_postgresql_engine(parsed, poolclass=NullPool), reader, None, name)
    raise StoreRefusedError(f"the URL of the job database is of {backend!r}: {_EXPECTED}")


class Database:
    """Opens a connection a call for writing, and lends one for reading."""

    def __init__(self, writer: Engine, reader: Engine, file: Path | None, name: str) -> None:
        self.name = name
        """Which one it is: the file, or host and database; who logs in is not in it."""
        self._engine = writer
        self._reader = reader
        self._file = file
        self._was_read = False
        weakref.finalize(self, reader.dispose)  # connections that are kept end with their keeper

    @property
    def is_local(self) -> bool:
        """Whether it is a file, read without asking a server."""
        return self._file is not None

    def prepare(self) -> None:
        """Make folder, file and tables where they are missing, or of an older schema."""
        with self._as_store_errors():
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                _make_wal_file(self._file)
        with self.writing() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_CREATION_LOCK)))
            version = self._version(connection)
            if version is None:
                metadata.create_all(connection)
                connection.execute(insert(schema_table).values(version=SCHEMA_VERSION))
            else:
                migrate(connection, version)

    def hold_open(self) -> Connection | None:
        """Return a connection that a writer keeps, unused, until its job ends; None if none helps.

        The last connection that leaves a SQLite file locks all others out while it empties the WAL.
        With one that stays that is not at every write, where a process that is stopped at that
        moment would lock every reader out for as long.
        """
        if self._file is None:
            return None
        with self._as_store_errors():
            connection = self._engine.connect()
            connection.scalar(select(schema_table.c.version))  # a file is entered when it is read
            connection.rollback()
        return connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection within one transaction that holds the write lock from its start."""
        with (
            self._as_store_errors(),
            self._engine.connect() as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection | None]:
        """Yield a connection, or None where no job has recorded itself yet.

        Tables that came with a later schema than the database's are not there: see `schema_of`.
        """
        if self._file is not None and not self._file.exists():
            self._reader.dispose()
            yield None
            return
        with self._as_store_errors(), self._reader.connect() as connection:
            # asked once a second: a writer of a later Retort may have changed it meanwhile
            known, now_s = connection.info, time.monotonic()
            if now_s - known.get("asked_s", -math.inf) > _VERSION_STANDS_S:
                known["schema"], known["asked_s"] = self._version(connection), now_s
            if known["schema"] is None:
                known["asked_s"] = -math.inf  # a job may make it any moment
            self._was_read = self._was_read or known["schema"] is not None
            yield connection if known["schema"] is not None else None

    def check(self) -> None:
        """Raise if records cannot be read, are of another schema version, or were deleted."""
        with self.reading() as connection:
            if connection is not None:
                self._version(connection)
            elif self._was_read:
                raise StoreError(
                    f"the job database {self.name} was deleted since it was read: a job that runs "
                    "makes it again, else restore it"
                )

    def _version(self, connection: Connection) -> int | None:
        """Return the version of the schema, None where nothing has been made yet.

        Raises:
            StoreRefusedError: it is none that this Retort can read, or the file is another's.
        """
        # looked for before it is read: a job may be making it at this moment
        tables = inspect(connection)
        if not tables.has_table(schema_table.name):
            if self._file is not None and tables.get_table_names():
                raise StoreRefusedError(
                    f"{self.name} is a SQLite database of something else, without job records: "
                    "set RETORT_DB to the one that the jobs write, or to a new file"
                )
            return None
        version: int | None = connection.scalar(select(schema_table.c.version))
        if version is not None and not OLDEST_VERSION <= version <= SCHEMA_VERSION:
            newer = version > SCHEMA_VERSION
            hint = "a newer Retort made it, use that one" if newer else "it is too old"
            raise StoreRefusedError(
                f"the job database {self.name} has schema {version}, this Retort expects "
                f"{OLDEST_VERSION} to {SCHEMA_VERSION}: {hint}, or let RETORT_DB name another"
            )
        return version

    @contextmanager
    def _as_store_errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:  # `orig` alone: the rest repeats the statement and its values
            cause: object = error.orig
            raise StoreError(f"the job database {self.name} cannot be used: {cause}") from error
        except (OSError, sqlite3.Error, PoolTimeoutError) as error:
            raise StoreError(f"the job database {self.name} cannot be used: {error}") from error


def schema_of(connection: Connection) -> int:
    """Return the version of the schema that a reader's connection reads."""
    version: int = connection.info["schema"]
    return version


def _refuse_network_mount(file: Path) -> None:
    if kind := network_mount(file):
        raise StoreRefusedError(
            f"the job database {file.name} lies on a network file system ({kind}), where SQLite "
            "loses data: set RETORT_DB to a file on a local disk, or for jobs on several hosts to "
            "postgresql://user@host/name"
        )


def _sqlite_writer(file: Path) -> Engine:
    return _sqlite_engine(file, "BEGIN IMMEDIATE", BUSY_TIMEOUT_S, poolclass=NullPool)


def _sqlite_reader(file: Path) -> Engine:
    """Return an engine that keeps connections, each as long as `file` is the one it opened."""
    engine = _sqlite_engine(
        file, "BEGIN", READ_TIMEOUT_S, poolclass=QueuePool, pool_size=4, max_overflow=36
    )

    def identity() -> tuple[int, int]:
        found = file.stat()
        return found.st_dev, found.st_ino

    def connected(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        record.info["file"] = identity()

    def checked_out(
        connection: sqlite3.Connection, record: ConnectionPoolEntry, proxy: object
    ) -> None:
        if record.info["file"] != identity():
            raise DisconnectionError("the file was replaced")

    event.listen(engine, "connect", connected)
    event.listen(engine, "checkout", checked_out)
    return engine


def _sqlite_engine(file: Path, begin_with: str, timeout_s: float, **pool: Any) -> Engine:
    def connect() -> sqlite3.Connection:
        # mode=rw: only `prepare` makes a file, so that a reader never leaves an empty one behind
        connection = sqlite3.connect(
            f"{file.as_uri()}?mode=rw",
            uri=True,
            timeout=timeout_s,
            isolation_level=None,  # transactions are begun below, not by the driver's guess
            check_same_thread=False,
        )
        connection.execute("PRAGMA synchronous=NORMAL")  # WAL: safe against a killed process
        return connection

    def begin(connection: Connection) -> None:
        # a transaction that reads first and then writes would fail at once where another one wrote
        connection.exec_driver_sql(begin_with)

    engine = create_engine("sqlite://", creator=connect, json_deserializer=lenient_json, **pool)
    event.listen(engine, "begin", begin)
    return engine


def _postgresql_engine(url: URL, **pool: Any) -> Engine:
    connect = {"connect_timeout": round(BUSY_TIMEOUT_S)}
    try:
        return create_engine(url.set(drivername="postgresql+psycopg"), connect_args=connect, **pool)
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
