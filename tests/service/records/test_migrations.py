"""Databases of earlier schemas: read as they are, brought up to date by whoever writes."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.jobs import State
from service.records.connections.database import open_database
from service.records.connections.engines import DatabaseError, DatabaseRefusedError
from service.records.connections.migrations import OLDEST_VERSION, STEPS
from service.records.events import Log
from service.records.job_store import open_store
from service.records.schema import SCHEMA_VERSION
from service.records.series import Point

SCHEMAS = Path(__file__).parent / "schemas"
RECORDED = "0" * 11 + "1" + "0" * 20
"""The job in each of the files in `schemas`."""


@pytest.fixture(params=range(OLDEST_VERSION, SCHEMA_VERSION))
def old(request: pytest.FixtureRequest, file: Path) -> Path:
    """A database as an earlier Retort left it."""
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript((SCHEMAS / f"schema-{request.param}.sql").read_text())
    return file


def shape(file: Path) -> dict[str, list[tuple[object, ...]]]:
    """The columns of each table: name, type, not null, default, place in the key."""
    with closing(sqlite3.connect(file)) as connection:
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
        ).fetchall()
        return {
            name: sorted(row[1:] for row in connection.execute(f"PRAGMA table_info({name})"))
            for (name,) in tables
            if name != "sqlite_sequence"
        }


def test_every_step_is_numbered_and_leads_to_this_schema() -> None:
    assert sorted(STEPS) == list(range(OLDEST_VERSION + 1, SCHEMA_VERSION + 1))


def test_a_writer_brings_an_old_database_to_what_a_new_one_has(
    old: Path, url: str, tmp_path: Path
) -> None:
    open_database(url).prepare()
    open_database(str(tmp_path / "new.db")).prepare()
    assert shape(old) == shape(tmp_path / "new.db")
    open_database(url).prepare()  # a second writer finds nothing to do
    found = open_store(url).get(RECORDED)
    assert found is not None
    assert found.record.metrics == {"loss": 0.5}


def test_an_old_database_is_read_as_it_is_and_on_after_a_job_has_brought_it_up_to_date(
    old: Path, url: str, client: TestClient, create: Callable[..., str]
) -> None:
    before = old.read_bytes()
    path = f"/api/v1/jobs/{RECORDED}"

    def read() -> list[object]:
        parts = ("", "/log", "/events", "/ranks", "/metrics", "/metrics?name=loss")
        return [client.get(path + part).json() for part in parts] + [client.get("/readyz").json()]

    (job, log, events, ranks, names, series, ready) = read()
    assert job["metrics"] == {"loss": 0.5}
    assert log == {"lines": [], "traceback": None}
    assert len(events["events"]) == 4
    assert len(ranks["ranks"]) == 1
    assert names["names"][0]["last_value"] == 0.5
    assert series["series"][0]["last"] == [0.7, 0.5]
    assert ready == {"status": "ready"}
    assert old.read_bytes() == before, "a reader changes nothing"
    store = open_store(url)
    store.prepare()
    after = read()
    assert [after[1], after[2], after[4], after[5]] == [log, events, names, series]
    new = create(store, 2)
    store.keep_log(new, Log(("a line",)))
    store.heartbeat(new, points=[Point("loss", 1, 0.25)])


def test_a_step_that_fails_leaves_the_old_schema(old: Path, url: str) -> None:
    with closing(sqlite3.connect(old)) as connection, connection:
        connection.execute("CREATE TABLE logs (other INTEGER)")
    before = shape(old)
    with pytest.raises(DatabaseError, match="already exists"):
        open_database(url).prepare()
    assert shape(old) == before
    with closing(sqlite3.connect(old)) as connection:
        (version,) = connection.execute("SELECT version FROM retort_schema").fetchone()
    assert version < SCHEMA_VERSION


def test_a_database_that_a_newer_retort_takes_over_is_refused_by_name_to_readers_and_jobs(
    file: Path, url: str, create: Callable[..., str]
) -> None:
    store = open_store(url)
    store.prepare()
    create(store)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE retort_schema SET version = 99")
    for ask in (store.check, store.prepare):
        with pytest.raises(
            DatabaseRefusedError, match=f"{file} has schema 99.*a newer Retort made it"
        ):
            ask()


def test_a_file_of_something_else_is_not_ready_and_shows_no_empty_list(
    file: Path, client: TestClient
) -> None:
    file.parent.mkdir()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE runs (id INTEGER)")
    assert client.get("/readyz").status_code == 503
    assert client.get("/api/v1/jobs").status_code == 503


def test_a_database_that_was_deleted_is_not_ready_until_it_is_there_again(
    file: Path, url: str, client: TestClient, create: Callable[..., str]
) -> None:
    assert client.get("/readyz").status_code == 200, "no job has recorded itself yet"
    store = open_store(url)
    store.prepare()
    job = create(store)
    store.transition(job, State.RUNNING)
    assert client.get("/readyz").status_code == 200
    for part in file.parent.glob("jobs.db*"):
        part.unlink()
    assert client.get("/readyz").status_code == 503
    store.prepare()
    assert client.get("/readyz").status_code == 200


def test_no_jobs_says_of_which_database(file: Path, client: TestClient) -> None:
    body = client.get("/api/v1/jobs").json()
    assert body["database"] == "/".join(file.parts[-3:])
