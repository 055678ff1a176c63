import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.jobs import Periods, State
from service.records.connections.engines import DatabaseRefusedError
from service.records.job_store import JobStore
from service.web.app import create_app


def run(store: JobStore, job: str, **more: Any) -> None:
    progress: dict[str, Any] = {"done": 40, "total": 100, "resumed": 10, "rate": 2.0}
    progress |= {"eta_s": 30.0, "metrics": {"loss": 0.5, "kd": None}} | more
    store.transition(job, State.RUNNING)
    store.update(job, **progress)


def test_before_any_job_the_list_is_empty_and_no_database_is_made(
    client: TestClient, tmp_path: Path, file: Path
) -> None:
    answer = client.get("/api/v1/jobs")
    assert answer.status_code == 200
    assert answer.json() == {
        "jobs": [],
        "next_cursor": None,
        "partial": False,
        "database": "/".join(file.parts[-3:]),
    }
    assert client.get("/readyz").json() == {"status": "ready"}
    assert list(tmp_path.iterdir()) == []


def test_a_job_is_answered_with_its_state_progress_rate_eta_metrics_and_age(
    client: TestClient, store: JobStore, create: Callable[..., str]
) -> None:
    job = create(store)
    run(store, job)
    body = client.get(f"/api/v1/jobs/{job}").json()
    ages = body.pop("heartbeat_age_s")
    ages += body.pop("progress_age_s")
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
        "attempt": 0,
        "resumed_from": None,
        "bytes": None,
        "environment": {},
        "artifacts": [],
        "ranks": 0,
        "version": 2,
        "poll_after_s": 2.0,
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
    url: str,
    store: JobStore,
    periods: Periods,
    status: str,
    eta_s: float | None,
    create: Callable[..., str],
) -> None:
    job = create(store)
    run(store, job)
    body = (
        TestClient(create_app(url, periods=periods), "http://127.0.0.1")
        .get(f"/api/v1/jobs/{job}")
        .json()
    )
    assert (body["state"], body["status"], body["eta_s"]) == ("running", status, eta_s)


def test_a_failed_job_tells_why(
    client: TestClient, store: JobStore, create: Callable[..., str]
) -> None:
    job = create(store)
    run(store, job)
    store.transition(job, State.FAILED, "non-finite loss at step 41")
    body = client.get(f"/api/v1/jobs/{job}").json()
    assert (body["status"], body["reason"]) == ("failed", "non-finite loss at step 41")
    assert body["ended"] is not None
    assert body["eta_s"] is None


def test_the_list_is_paged_newest_first_and_rows_have_no_config(
    client: TestClient, store: JobStore, create: Callable[..., str]
) -> None:
    jobs = [create(store, number) for number in range(1, 6)]
    first = client.get("/api/v1/jobs", params={"limit": 3}).json()
    second = client.get("/api/v1/jobs", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert [row["id"] for row in first["jobs"] + second["jobs"]] == jobs[::-1]
    assert second["next_cursor"] is None
    assert "config" not in first["jobs"][0]


def test_the_list_is_filtered_by_state_and_kind(
    client: TestClient, store: JobStore, create: Callable[..., str]
) -> None:
    cache, train = create(store, 1, "cache-teacher"), create(store, 2)
    run(store, cache)

    def listed(**params: str) -> list[str]:
        return [row["id"] for row in client.get("/api/v1/jobs", params=params).json()["jobs"]]

    assert listed(state="running") == [cache]
    assert listed(kind="train-student") == [train]
    assert listed(state="pending", kind="cache-teacher") == []


def test_a_database_deleted_under_the_service_is_an_empty_list_until_the_next_job(
    client: TestClient, store: JobStore, file: Path, create: Callable[..., str]
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
    url: str, store: JobStore, file: Path, create: Callable[..., str]
) -> None:
    job = create(store)
    with closing(sqlite3.connect(file, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE jobs SET done = 5")
        for _ in range(2):
            body = TestClient(create_app(url), "http://127.0.0.1").get(f"/api/v1/jobs/{job}").json()
            assert body["progress"]["done"] == 0


def test_a_database_of_an_unknown_scheme_is_refused_at_the_start() -> None:
    with pytest.raises(DatabaseRefusedError, match="is of 'gopher': expected sqlite:"):
        create_app("gopher://example.org/jobs")
