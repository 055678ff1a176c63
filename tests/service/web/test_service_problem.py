import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.records.connections.database import open_database
from service.records.job_store import JobStore


def execute(file: Path, statement: str) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement)


def is_problem(answer: Any, status: int) -> bool:
    body = answer.json()
    return (
        answer.status_code == body["status"] == status
        and answer.headers["content-type"] == "application/problem+json"
        and set(body) == {"type", "title", "status", "detail", "request_id"}
        and answer.headers["x-request-id"] == body["request_id"]
    )


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "limit=-1000000000000000000000000000000",
        "limit=1e30",
        "limit=",
        "cursor=x",
        "cursor=%00",
        "cursor=" + "0" * 60_000,
        "state=crashed",
        "state=RUNNING",
        "kind=';DROP TABLE jobs",
        "kind=%00",
        "kind=" + "a" * 65,
    ],
)
def test_a_parameter_out_of_bounds_is_a_short_problem(
    client: TestClient, store: JobStore, query: str
) -> None:
    answer = client.get(f"/api/v1/jobs?{query}")
    assert is_problem(answer, 422)
    assert len(answer.content) < 500
    assert f"query.{query.split('=')[0]}: got " in answer.json()["detail"]


@pytest.mark.parametrize(
    "name", ["0" * 32, "x", "%00", "'; DROP TABLE jobs; --", "..%2F..%2Fetc", "a" * 50_000, "%ff"]
)
def test_what_names_no_job_is_not_found(
    client: TestClient, store: JobStore, name: str, create: Callable[..., str]
) -> None:
    create(store)
    answer = client.get(f"/api/v1/jobs/{name}")
    assert is_problem(answer, 404)
    assert len(client.get("/api/v1/jobs").json()["jobs"]) == 1


def test_an_unknown_path_and_a_wrong_method_are_problems_too(client: TestClient) -> None:
    assert is_problem(client.get("/api/v2/jobs"), 404)
    wrong = client.post("/api/v1/jobs")
    assert is_problem(wrong, 405)
    assert wrong.headers["allow"] == "GET"


def test_the_service_lives_without_its_database_but_is_not_ready(
    client: TestClient, file: Path
) -> None:
    file.parent.mkdir()
    file.write_bytes(b"not a database, " * 100)
    assert client.get("/livez").json() == {"status": "alive"}
    for path in ("/readyz", "/api/v1/jobs", "/api/v1/jobs/" + "0" * 32):
        answer = client.get(path)
        assert is_problem(answer, 503)
        assert str(file.parent) not in answer.text


def test_another_schema_version_is_not_ready(client: TestClient, file: Path, url: str) -> None:
    open_database(url).prepare()
    execute(file, "UPDATE retort_schema SET version = 7")
    assert is_problem(client.get("/readyz"), 503)


def test_a_damaged_record_is_said_without_a_traceback(
    client: TestClient, store: JobStore, file: Path, create: Callable[..., str]
) -> None:
    job = create(store)
    execute(file, "UPDATE jobs SET metrics = '{'")
    answer = client.get(f"/api/v1/jobs/{job}")
    assert answer.json()["reason"] == "the record is damaged: metrics"
    assert "JSON" not in answer.text
