import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.database import StoreRefusedError, open_database
from service.jobs import Periods, State, job_id
from service.store import JobStore, open_store


@pytest.fixture
def client(url: str) -> Iterator[TestClient]:
    with TestClient(create_app(url), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def store(url: str) -> JobStore:
    store = open_store(url)
    store.prepare()
    return store


def create(store: JobStore, number: int = 1, kind: str = "train-student") -> str:
    new = job_id(number, bytes(10))
    store.create(new, kind=kind, unit="steps", host="gpu-1", pid=7, config={"epochs": 3})
    return new


def run(store: JobStore, job: str, **more: Any) -> None:
    progress: dict[str, Any] = {"done": 40, "total": 100, "resumed": 10, "rate": 2.0}
    progress |= {"eta_s": 30.0, "metrics": {"loss": 0.5, "kd": None}} | more
    store.transition(job, State.RUNNING)
    store.update(job, **progress)


def execute(file: Path, statement: str) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement)


def is_problem(answer: Any, status: int) -> bool:
    body = answer.json()
    return (
        answer.status_code == body["status"] == status
        and answer.headers["content-type"] == "application/problem+json"
        and set(body) == {"type", "title", "status", "detail"}
    )


def test_before_any_job_the_list_is_empty_and_no_database_is_made(
    client: TestClient, tmp_path: Path
) -> None:
    answer = client.get("/api/v1/jobs")
    assert answer.status_code == 200
    assert answer.json() == {"jobs": [], "next_cursor": None}
    assert client.get("/readyz").json() == {"status": "ready"}
    assert list(tmp_path.iterdir()) == []


def test_a_job_is_answered_with_its_state_progress_rate_eta_metrics_and_age(
    client: TestClient, store: JobStore
) -> None:
    job = create(store)
    run(store, job)
    body = client.get(f"/api/v1/jobs/{job}").json()
    ages = body.pop("heartbeat_age_s")
    stamps = [body.pop(name) for name in ("created", "started", "progress_at", "heartbeat")]
    assert body == {
        "id": job,
        "kind": "train-student",
        "state": "running",
        "status": "running",
        "reason": None,
        "progress": {"done": 40, "total": 100, "unit": "steps", "resumed": 10},
        "rate": 2.0,
        "eta_s": 30.0,
        "metrics": {"loss": 0.5, "kd": None},
        "ended": None,
        "host": "gpu-1",
        "pid": 7,
        "config": {"epochs": 3},
    }
    assert 0 <= ages < 5
    assert all(stamp.endswith("Z") for stamp in stamps)
    assert [datetime.fromisoformat(stamp) for stamp in stamps] == sorted(
        datetime.fromisoformat(stamp) for stamp in stamps
    )


@pytest.mark.parametrize(
    ("periods", "status", "eta_s"),
    [
        (Periods(60, 120), "running", 30.0),
        (Periods(0, 120), "stale", None),
        (Periods(0, 0), "crashed", None),
    ],
)
def test_stale_and_crashed_are_derived_and_the_stored_state_stays(
    url: str, store: JobStore, periods: Periods, status: str, eta_s: float | None
) -> None:
    job = create(store)
    run(store, job)
    body = TestClient(create_app(url, periods=periods)).get(f"/api/v1/jobs/{job}").json()
    assert (body["state"], body["status"], body["eta_s"]) == ("running", status, eta_s)


def test_a_failed_job_tells_why(client: TestClient, store: JobStore) -> None:
    job = create(store)
    run(store, job)
    store.transition(job, State.FAILED, "non-finite loss at step 41")
    body = client.get(f"/api/v1/jobs/{job}").json()
    assert (body["status"], body["reason"]) == ("failed", "non-finite loss at step 41")
    assert body["ended"] is not None
    assert body["eta_s"] is None


def test_the_list_is_paged_newest_first_and_rows_have_no_config(
    client: TestClient, store: JobStore
) -> None:
    jobs = [create(store, number) for number in range(1, 6)]
    first = client.get("/api/v1/jobs", params={"limit": 3}).json()
    second = client.get("/api/v1/jobs", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert [row["id"] for row in first["jobs"] + second["jobs"]] == jobs[::-1]
    assert second["next_cursor"] is None
    assert "config" not in first["jobs"][0]


def test_the_list_is_filtered_by_state_and_kind(client: TestClient, store: JobStore) -> None:
    cache, train = create(store, 1, "cache-teacher"), create(store, 2)
    run(store, cache)

    def listed(**params: str) -> list[str]:
        return [row["id"] for row in client.get("/api/v1/jobs", params=params).json()["jobs"]]

    assert listed(state="running") == [cache]
    assert listed(kind="train-student") == [train]
    assert listed(state="pending", kind="cache-teacher") == []


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
def test_what_names_no_job_is_not_found(client: TestClient, store: JobStore, name: str) -> None:
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


def test_a_damaged_record_is_a_problem_without_a_traceback(
    client: TestClient, store: JobStore, file: Path
) -> None:
    job = create(store)
    execute(file, "UPDATE jobs SET metrics = '{'")
    answer = client.get(f"/api/v1/jobs/{job}")
    assert is_problem(answer, 500)
    assert "JSON" not in answer.text


def test_a_database_deleted_under_the_service_is_an_empty_list_until_the_next_job(
    client: TestClient, store: JobStore, file: Path
) -> None:
    create(store)
    assert len(client.get("/api/v1/jobs").json()["jobs"]) == 1
    for part in file.parent.iterdir():
        part.unlink()
    assert client.get("/api/v1/jobs").json()["jobs"] == []
    store.prepare()
    job = create(store, 2)
    assert client.get(f"/api/v1/jobs/{job}").status_code == 200


def test_two_services_read_while_a_job_holds_the_write_lock(
    url: str, store: JobStore, file: Path
) -> None:
    job = create(store)
    with closing(sqlite3.connect(file, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE jobs SET done = 5")
        for _ in range(2):
            body = TestClient(create_app(url)).get(f"/api/v1/jobs/{job}").json()
            assert body["progress"]["done"] == 0


def test_every_answer_is_declared(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    declared = {path: set(methods["get"]["responses"]) for path, methods in paths.items()}
    assert declared == {
        "/api/v1/jobs": {"200", "422", "503"},
        "/api/v1/jobs/{job_id}": {"200", "404", "422", "503"},
        "/livez": {"200"},
        "/readyz": {"200", "503"},
    }
    problem = paths["/api/v1/jobs"]["get"]["responses"]["422"]["content"]
    assert set(problem) == {"application/problem+json"}


def test_a_database_of_an_unknown_scheme_is_refused_at_the_start() -> None:
    with pytest.raises(StoreRefusedError, match="is of 'gopher': expected sqlite:"):
        create_app("gopher://example.org/jobs")
