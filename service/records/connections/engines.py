"""SQLite and PostgreSQL as SQLAlchemy's engines."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool, QueuePool

from service.records.schema import lenient_json

BUSY_TIMEOUT_S = 5.0
"""How long a call waits for another writer's lock, or for a server to answer."""


def sqlite_writer(file: Path) -> Engine:
    """Return an engine whose transactions take the write lock when they begin."""
    return _sqlite_engine(file, "BEGIN IMMEDIATE", BUSY_TIMEOUT_S, poolclass=NullPool)


def sqlite_reader(file: Path, timeout_s: float) -> Engine:
    """Return an engine that keeps connections, each as long as `file` is the one it opened."""
    engine = _sqlite_engine(
        file, "BEGIN", timeout_s, poolclass=QueuePool, pool_size=4, max_overflow=36
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


def postgresql_engine(url: URL, **pool: Any) -> Engine:
    """Return an engine over psycopg.

    Raises:
        DatabaseRefusedError: psycopg is not installed.
    """
    connect = {"connect_timeout": round(BUSY_TIMEOUT_S)}
    try:
        return create_engine(url.set(drivername="postgresql+psycopg"), connect_args=connect, **pool)
    except ModuleNotFoundError as error:
        raise DatabaseRefusedError(
            "a PostgreSQL job database needs the driver psycopg 3: pip install 'psycopg[binary]'"
        ) from error


def make_wal_file(file: Path) -> None:
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


class DatabaseError(Exception):
    """The database cannot be used now: locked, unreachable, damaged."""


class DatabaseBusyError(DatabaseError):
    """Another process holds the whole SQLite file locked."""


class DatabaseRefusedError(DatabaseError):
    """The database cannot be used at all: a URL, driver or schema that Retort does not know."""
