"""Connections to the database of job records: a SQLite file by default, PostgreSQL by URL.

A writer's connection lives only as long as one call; a reader's is kept, and left for a new one
where the file was deleted or replaced since.
"""

import asyncio
import math
import os
import sqlite3
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, func, insert, inspect, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool, QueuePool

from service.records.connections.engines import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseRefusedError,
    make_wal_file,
    postgresql_engine,
    sqlite_reader,
    sqlite_writer,
)
from service.records.connections.migrations import OLDEST_VERSION, migrate
from service.records.connections.mounts import network_mount
from service.records.schema import SCHEMA_VERSION, metadata, schema_table

READ_TIMEOUT_S = 1.0
"""How long a reader waits, in an event loop not at all; no writer in WAL mode makes it wait."""
_VERSION_STANDS_S = 1.0
_CREATION_LOCK = 0x5245_544F_5254
"""The PostgreSQL advisory lock under which the tables are made: 'RETORT' in ASCII."""
_EXPECTED = (
    "expected sqlite:////absolute/path/jobs.db, postgresql://user@host/name or the path of a "
    "SQLite file; set RETORT_DB to one"
)


def default_url() -> str:
    """Return RETORT_DB, or the URL of `.retort/jobs.db` in the working directory.

    The password that RETORT_DB leaves out is that of the file RETORT_DB_PASSWORD_FILE, if any.

    Raises:
        DatabaseRefusedError: that file cannot be read.
    """
    url = os.environ.get("RETORT_DB") or sqlite_url(Path.cwd() / ".retort" / "jobs.db")
    file = os.environ.get("RETORT_DB_PASSWORD_FILE")
    return _with_password(url, Path(file)) if file and url.startswith("postgres") else url


def _with_password(url: str, file: Path) -> str:
    try:
        password = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DatabaseRefusedError(
            f"RETORT_DB_PASSWORD_FILE {file} cannot be read ({error}): let it name a text file "
            "that holds the password of the job database"
        ) from error
    parsed = _parsed(url)
    if parsed.password is not None:
        return url
    return parsed.set(password=password).render_as_string(hide_password=False)


def sqlite_url(file: Path) -> str:
    """Return the URL of a SQLite file, whatever characters its path has."""
    return URL.create("sqlite", database=str(file)).render_as_string()


def open_database(url: str) -> "Database":
    """Return the database at `url`; nothing is connected to or created yet.

    Raises:
        DatabaseRefusedError: the URL names neither SQLite nor PostgreSQL, or a driver is missing.
    """
    if "://" not in url and url.endswith((".db", ".sqlite", ".sqlite3")):
        url = sqlite_url(Path(url))
    parsed = _parsed(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:" or parsed.query:
            raise DatabaseRefusedError(f"the job database must be a plain SQLite file: {_EXPECTED}")
        file = Path(parsed.database).absolute()
        _refuse_network_mount(file)
        impatient = sqlite_reader(file, 0.0)
        reader = sqlite_reader(file, READ_TIMEOUT_S)
        return Database(sqlite_writer(file), reader, file, str(file), impatient)
    if backend in ("postgresql", "postgres"):
        pooled = {"poolclass": QueuePool, "pool_size": 4, "max_overflow": 12, "pool_timeout": 5.0}
        reader = postgresql_engine(parsed, pool_pre_ping=True, **pooled)
        name = f"postgresql://{parsed.host or 'localhost'}/{parsed.database or ''}"
        return Database(postgresql_engine(parsed, poolclass=NullPool), reader, None, name)
    raise DatabaseRefusedError(f"the URL of the job database is of {backend!r}: {_EXPECTED}")


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError) as error:  # not repeated: it may hold a password
        raise DatabaseRefusedError(
            f"the URL of the job database cannot be read: {_EXPECTED}"
        ) from error


class Database:
    """Opens a connection a call for writing, and lends one for reading."""

    def __init__(
        self,
        writer: Engine,
        reader: Engine,
        file: Path | None,
        name: str,
        impatient: Engine | None = None,
    ) -> None:
        self.name = name
        """Which one it is: the file, or host and database; who logs in is not in it."""
        self._engine = writer
        self._reader = reader
        self._impatient = reader if impatient is None else impatient
        self._file = file
        self._was_read = False
        for each in (self._reader, self._impatient):
            weakref.finalize(self, each.dispose)  # connections that are kept end with their keeper

    @property
    def is_local(self) -> bool:
        """Whether it is a file, read without asking a server."""
        return self._file is not None

    def prepare(self) -> None:
        """Make folder, file and tables where they are missing, or of an older schema."""
        with self._as_database_errors():
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                make_wal_file(self._file)
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
        with self._as_database_errors():
            connection = self._engine.connect()
            connection.scalar(select(schema_table.c.version))  # a file is entered when it is read
            connection.rollback()
        return connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection within one transaction that holds the write lock from its start."""
        with (
            self._as_database_errors(),
            self._engine.connect() as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection | None]:
        """Yield a connection, or None where no job has recorded itself yet.

        Tables that came with a later schema than the database's are not there: see `schema_of`. In
        the thread of an event loop it does not wait for a lock, since everything else would, too.

        Raises:
            DatabaseBusyError: it would have to wait.
        """
        reader = self._impatient if _in_event_loop() else self._reader
        if self._file is not None and not self._file.exists():
            reader.dispose()
            yield None
            return
        with self._as_database_errors(), reader.connect() as connection:
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
                raise DatabaseError(
                    f"the job database {self.name} was deleted since it was read: a job that runs "
                    "makes it again, else restore it"
                )

    def _version(self, connection: Connection) -> int | None:
        """Return the version of the schema, None where nothing has been made yet.

        Raises:
            DatabaseRefusedError: it is none that this Retort can read, or the file is another's.
        """
        # looked for before it is read: a job may be making it at this moment
        tables = inspect(connection)
        if not tables.has_table(schema_table.name):
            if self._file is not None and tables.get_table_names():
                raise DatabaseRefusedError(
                    f"{self.name} is a SQLite database of something else, without job records: "
                    "set RETORT_DB to the one that the jobs write, or to a new file"
                )
            return None
        version: int | None = connection.scalar(select(schema_table.c.version))
        if version is not None and not OLDEST_VERSION <= version <= SCHEMA_VERSION:
            newer = version > SCHEMA_VERSION
            hint = "a newer Retort made it, use that one" if newer else "it is too old"
            raise DatabaseRefusedError(
                f"the job database {self.name} has schema {version}, this Retort expects "
                f"{OLDEST_VERSION} to {SCHEMA_VERSION}: {hint}, or let RETORT_DB name another"
            )
        return version

    @contextmanager
    def _as_database_errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:  # `orig` alone: the rest repeats the statement and its values
            cause: object = error.orig
            kind = DatabaseBusyError if _is_busy(error.orig) else DatabaseError
            raise kind(f"the job database {self.name} cannot be used: {cause}") from error
        except (OSError, sqlite3.Error, PoolTimeoutError) as error:
            raise DatabaseError(f"the job database {self.name} cannot be used: {error}") from error


def schema_of(connection: Connection) -> int:
    """Return the version of the schema that a reader's connection reads."""
    version: int = connection.info["schema"]
    return version


def _is_busy(error: BaseException | None) -> bool:
    code = error.sqlite_errorcode if isinstance(error, sqlite3.OperationalError) else None
    return code is not None and code & 0xFF == sqlite3.SQLITE_BUSY  # its extended codes, too


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _refuse_network_mount(file: Path) -> None:
    if kind := network_mount(file):
        raise DatabaseRefusedError(
            f"the job database {file.name} lies on a network file system ({kind}), where SQLite "
            "loses data: set RETORT_DB to a file on a local disk, or for jobs on several hosts to "
            "postgresql://user@host/name"
        )
