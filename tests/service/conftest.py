"""Real databases and real processes for the service's tests."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from service.database import sqlite_url
from service.schema import metadata
from service.store import JobStore, open_store

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "records" / "jobs.db"


@pytest.fixture
def url(file: Path) -> str:
    return sqlite_url(file)


# Set RETORT_TEST_POSTGRESQL to the URL of an empty database to run the store's tests there too.
POSTGRESQL = os.environ.get("RETORT_TEST_POSTGRESQL")


@pytest.fixture(params=["sqlite", "postgresql"] if POSTGRESQL else ["sqlite"])
def any_url(request: pytest.FixtureRequest, url: str) -> str:
    """The URL of an empty database of each kind at hand."""
    if request.param == "sqlite":
        return url
    assert POSTGRESQL is not None
    engine = create_engine(POSTGRESQL)
    metadata.drop_all(engine)
    engine.dispose()
    return POSTGRESQL


@pytest.fixture
def store(any_url: str) -> JobStore:
    """A store whose tables exist."""
    store = open_store(any_url)
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

    def wait(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline_s, f"not within {timeout_s} s"
            time.sleep(0.02)

    return wait
