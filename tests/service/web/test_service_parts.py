"""Ranks, metrics, events, cancellation and ETags over HTTP, on both databases."""

import platform
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service import VERSION
from service.jobs import Periods, State, job_id
from service.records.events import EventKind, Said
from service.records.job_store import JobStore
from service.records.rank_rows import Rank
from service.records.series import Point
from service.web.app import create_app

ABSENT = "f" * 32


@pytest.fixture
def any_client(any_url: str) -> Iterator[TestClient]:
    with TestClient(create_app(any_url), "http://127.0.0.1") as client:
        yield client


@pytest.fixture
def job(any_store: JobStore, create: Callable[..., str]) -> str:
    """A running job."""
    job = create(any_store)
    any_store.transition(job, State.RUNNING)
    return job


def test_ranks_are_answered_in_order_each_with_its_own_ages(
    any_store: JobStore, any_client: TestClient, job: str
) -> None:
    any_store.heartbeat(job, rank=Rank(0, "gpu-1", 7, done=5))
    for rank in (2, 1):
        any_store.beat_rank("no target", 0, Rank(rank, "gpu-2", 10 + rank, done=rank), known=job)
    any_store.beat_rank("no target", 0, Rank(2, "gpu-2", 12, State.FAILED, 9), known=job)
    ranks = any_client.get(f"/api/v1/jobs/{job}/ranks").json()["ranks"]
    shown = [(r["rank"], r["host"], r["pid"], r["state"], r["status"], r["done"]) for r in ranks]
    assert shown == [
        (0, "gpu-1", 7, "running", "running", 5),
        (1, "gpu-2", 11, "running", "running", 1),
        (2, "gpu-2", 12, "failed", "failed", 9),
    ]
    assert [r["progress_age_s"] is None for r in ranks] == [True, True, False]
    assert all(0 <= r["heartbeat_age_s"] < 5 for r in ranks)
    assert any_client.get(f"/api/v1/jobs/{job}").json()["ranks"] == 3


def test_a_rank_that_stops_beating_is_told_from_one_that_beats(
    any_url: str, any_store: JobStore, job: str
) -> None:
    any_store.heartbeat(job, rank=Rank(0, "h", 1))
    any_store.beat_rank("", 0, Rank(1, "h", 2, State.SUCCEEDED), known=job)
    app = create_app(any_url, periods=Periods(0.0, 100.0))
    ranks = TestClient(app, "http://127.0.0.1").get(f"/api/v1/jobs/{job}/ranks").json()["ranks"]
    assert [r["status"] for r in ranks] == ["stale", "succeeded"]


def test_other_ranks_find_the_newest_job_of_their_target_that_has_not_ended(
    any_store: JobStore,
) -> None:
    def begin(number: int, attempt: int) -> str:
        new = job_id(number, bytes(10))
        any_store.create(
            new, kind="k", unit="u", host="h", pid=1, config={}, attempt=attempt, target="t"
        )
        return new

    first, second, third = begin(1, 0), begin(2, 0), begin(3, 1)
    rank = Rank(1, "h", 9)
    for attempt, expected in ((0, second), (1, third)):
        beaten = any_store.beat_rank("t", attempt, rank)
        assert beaten is not None
        assert (beaten.job_id, beaten.state) == (expected, State.PENDING)
    assert any_store.beat_rank("other", 0, rank) is None
    any_store.transition(second, State.CANCELLING)
    any_store.transition(second, State.CANCELLED)
    beaten = any_store.beat_rank("t", 0, rank)
    assert beaten is not None
    assert beaten.job_id == first
    rows = [any_store.get(job) for job in (first, second, third)]
    assert [row and row.record.resumed_from for row in rows] == [None, first, second]


def test_metrics_are_named_and_answered_point_by_point_where_they_are_few(
    any_store: JobStore, any_client: TestClient, job: str
) -> None:
    points = [Point("loss", step, value, 10.0) for step, value in ((1, 2.0), (2, None), (3, 0.5))]
    any_store.heartbeat(job, points=[*points, Point("top1", 3, 90.0)])
    any_store.heartbeat(job, points=[Point("loss", 3, 77.0)])  # said again: the first stays
    path = f"/api/v1/jobs/{job}/metrics"
    body = any_client.get(path).json()
    assert body["names"] == [
        {"name": "loss", "points": 3, "last_step": 3, "last_value": 0.5},
        {"name": "top1", "points": 1, "last_step": 3, "last_value": 90.0},
    ]
    loss, none = any_client.get(path, params={"name": ["loss", "nothing"]}).json()["series"]
    assert loss["steps"] == [1, 2, 3]
    assert loss["min"] == loss["max"] == loss["last"] == [2.0, None, 0.5]
    assert loss["raw_points"] == 3
    assert loss["times"] == sorted(loss["times"])
    assert none["steps"] == []


@pytest.mark.parametrize("points", [10, 17, 160, 2000])
def test_many_points_are_answered_as_buckets_that_miss_no_extreme(
    any_store: JobStore, any_client: TestClient, job: str, points: int
) -> None:
    values = {step: (step * 7919) % 1009 / 10 for step in range(5, 4000) if step % 3}
    any_store.heartbeat(job, points=[Point("loss", step, v) for step, v in values.items()])
    (series,) = any_client.get(
        f"/api/v1/jobs/{job}/metrics", params={"name": "loss", "points": points}
    ).json()["series"]
    assert points / 2 <= len(series["steps"]) <= points
    assert series["raw_points"] == len(values)
    assert series["steps"] == sorted(series["steps"])
    assert series["steps"][-1] == max(values)
    assert series["last"] == [values[step] for step in series["steps"]]
    begin = 0
    for step, low, high in zip(series["steps"], series["min"], series["max"], strict=True):
        inside = [value for at, value in values.items() if begin < at <= step]
        assert (low, high) == (min(inside), max(inside))
        begin = step


def test_events_come_in_order_and_after_the_last_that_was_seen(
    any_store: JobStore, any_client: TestClient, job: str
) -> None:
    said = [Said(1, EventKind.WARNING, "slow disk"), Said(2, EventKind.CHECKPOINT, "saved at 5")]
    any_store.heartbeat(job, rank=Rank(0, "h", 1), said=said[:1])
    any_store.heartbeat(job, rank=Rank(0, "h", 1), said=said)  # the first one is said again
    any_store.transition(job, State.FAILED, "no space")
    path = f"/api/v1/jobs/{job}/events"
    body = any_client.get(path).json()
    assert [(event["kind"], event["text"]) for event in body["events"]] == [
        ("state", "pending"),
        ("state", "running"),
        ("warning", "slow disk"),
        ("checkpoint", "saved at 5"),
        ("state", "failed: no space"),
    ]
    ids = [event["id"] for event in body["events"]]
    assert ids == sorted(set(ids))
    assert body["last_id"] == ids[-1]
    rest = any_client.get(path, params={"after": ids[2]}).json()
    assert [event["id"] for event in rest["events"]] == ids[3:]
    end = any_client.get(path, params={"after": ids[-1]}).json()
    assert end == {"events": [], "last_id": ids[-1], "more": False}


@pytest.mark.parametrize("part", ["ranks", "metrics", "metrics?name=loss", "events"])
def test_the_parts_of_no_job_are_not_found(
    any_store: JobStore, any_client: TestClient, part: str
) -> None:
    assert any_client.get(f"/api/v1/jobs/{ABSENT}/{part}").status_code == 404


def test_a_cancellation_is_asked_for_once_and_refused_when_the_job_has_ended(
    any_store: JobStore, any_client: TestClient, job: str
) -> None:
    path = f"/api/v1/jobs/{job}/cancel"
    for _ in range(3):
        answer = any_client.post(path)
        assert answer.status_code == 202
        assert (answer.json()["id"], answer.json()["state"]) == (job, "cancelling")
    assert any_store.heartbeat(job) is State.CANCELLING
    any_store.transition(job, State.CANCELLED)
    refused = any_client.post(path)
    assert (refused.status_code, refused.json()["status"]) == (409, 409)
    assert "it is cancelled" in refused.json()["detail"]
    assert any_client.post(f"/api/v1/jobs/{ABSENT}/cancel").status_code == 404
    texts = [
        event["text"] for event in any_client.get(f"/api/v1/jobs/{job}/events").json()["events"]
    ]
    assert texts.count("cancelling: cancellation was asked for") == 1


def test_an_answer_that_is_known_is_not_sent_again(
    any_store: JobStore, any_client: TestClient, job: str
) -> None:
    for path in (f"/api/v1/jobs/{job}", "/api/v1/jobs"):
        etag = any_client.get(path).headers["etag"]
        assert etag.startswith('W/"')
        for known in (etag, etag[2:], f'"x", {etag}, W/"y"', "*", " * "):
            answer = any_client.get(path, headers={"if-none-match": known})
            assert (answer.status_code, answer.content) == (304, b"")
            assert answer.headers["etag"] == etag
        for unknown in ('"x"', "x", "", '"', 'W/"x", "*"'):
            assert any_client.get(path, headers={"if-none-match": unknown}).status_code == 200
        any_store.heartbeat(job)
        assert any_client.get(path, headers={"if-none-match": etag}).status_code == 200


def test_staleness_changes_the_etag_and_how_soon_to_ask_again(
    any_url: str, any_store: JobStore, job: str
) -> None:
    tags, polls = [], []
    for periods in (Periods(), Periods(0.0, 100.0), Periods(0.0, 0.0)):
        client = TestClient(create_app(any_url, periods=periods), "http://127.0.0.1")
        answer = client.get(f"/api/v1/jobs/{job}")
        tags.append(answer.headers["etag"])
        polls.append(answer.json()["poll_after_s"])
    any_store.transition(job, State.FAILED)
    polls.append(client.get(f"/api/v1/jobs/{job}").json()["poll_after_s"])
    assert len(set(tags)) == 3
    assert polls == [2.0, 10.0, 10.0, None]


def test_pages_are_linked_and_keep_their_filters(
    any_store: JobStore, any_client: TestClient, create: Callable[..., str]
) -> None:
    jobs = [create(any_store, number) for number in range(1, 6)]
    path: str | None = "/api/v1/jobs?limit=2&kind=train-student"
    seen: list[Any] = []
    while path is not None:
        answer = any_client.get(path)
        seen += [row["id"] for row in answer.json()["jobs"]]
        link = answer.headers.get("link")
        path = None if link is None else link.removeprefix("<").removesuffix('>; rel="next"')
        assert (path is None) == (answer.json()["next_cursor"] is None)
    assert seen == jobs[::-1]


def test_prometheus_scrapes_bounded_labels(
    any_store: JobStore, any_client: TestClient, job: str
) -> None:
    same = {"total": 10, "resumed": 2, "rate": None, "eta_s": None, "metrics": {}}
    any_store.update(job, done=4, bytes_=1000, **same)
    odd = job_id(99, bytes(10))
    any_store.create(odd, kind='x"\n', unit="u", host="h", pid=1, config={}, images_per_unit=3)
    any_store.transition(odd, State.RUNNING)
    any_store.update(odd, done=5, **same)
    any_client.get("/api/v1/nothing")
    any_client.get(f"/api/v1/jobs/{job}")
    answer = any_client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()
    for line in (
        'retort_jobs{kind="train-student",status="running"} 1.0',
        'retort_jobs{kind="other",status="running"} 1.0',
        'retort_jobs{kind="cache-teacher",status="crashed"} 0.0',
        'retort_job_progress_ratio{kind="train-student"} 0.4',
        'retort_bytes_total{kind="train-student"} 1000.0',
        'retort_images_total{kind="other"} 9.0',
        "retort_database_errors_total 0.0",
    ):
        assert line in lines
    assert any('route="/api/v1/jobs/{job_id}",status="2xx"' in line for line in lines)
    assert any('route="none",status="4xx"' in line for line in lines)
    assert job not in answer.text


def test_metrics_say_which_retort_answers_and_what_its_process_takes(client: TestClient) -> None:
    text = client.get("/metrics").text
    assert (
        f'retort_build_info{{python="{platform.python_version()}",version="{VERSION}"}} 1.0' in text
    )
    assert "process_resident_memory_bytes " in text


def test_the_newest_events_are_answered_when_asked_for(
    any_store: JobStore, any_client: TestClient, job: str
) -> None:
    said = [Said(number, EventKind.CHECKPOINT, f"saved at {number}") for number in range(600)]
    any_store.heartbeat(job, said=said)
    path = f"/api/v1/jobs/{job}/events"
    first = any_client.get(path).json()
    assert (first["more"], len(first["events"])) == (True, 200)
    newest = any_client.get(path, params={"newest": "true"}).json()
    assert (newest["more"], newest["events"][-1]["text"]) == (True, "saved at 599")
    rest = any_client.get(path, params={"after": newest["last_id"]}).json()
    assert (rest["events"], rest["more"]) == ([], False)


def test_a_name_that_no_database_can_hold_is_refused_not_a_failure(
    any_client: TestClient, job: str
) -> None:
    answer = any_client.get(f"/api/v1/jobs/{job}/metrics?name=a%00b")
    assert answer.status_code == 422


def test_a_crashed_job_that_is_asked_to_stop_is_cancelled_for_nobody_will_look(
    any_url: str, any_store: JobStore, job: str
) -> None:
    periods = Periods(stale_s=0.0, crashed_s=0.0)
    with TestClient(create_app(any_url, periods=periods), "http://127.0.0.1") as client:
        assert client.get(f"/api/v1/jobs/{job}").json()["status"] == "crashed"
        answer = client.post(f"/api/v1/jobs/{job}/cancel").json()
    assert (answer["status"], answer["reason"]) == ("cancelled", "cancelled after it had crashed")
    assert any_store.heartbeat(job) is State.CANCELLED, "one that lives after all finds it"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("metrics", "{no json"),
        ("metrics", '{"loss": "high"}'),
        ("metrics", "[]"),
        ("state", "weird"),
        ("heartbeat", "soon"),
        ("created", "1e300"),
        ("done", "many"),
        ("artifacts", "[1]"),
        ("environment", '{"torch": []}'),
    ],
)
def test_one_damaged_row_hides_no_other(
    store: JobStore,
    file: Path,
    client: TestClient,
    create: Callable[..., str],
    column: str,
    value: str,
) -> None:
    damaged, sound = create(store, 1), create(store, 2)
    with sqlite3.connect(file) as connection:
        connection.execute(f"UPDATE jobs SET {column} = ? WHERE id = ?", (value, damaged))
    connection.close()
    rows = client.get("/api/v1/jobs").json()["jobs"]
    assert [row["id"] for row in rows] == [sound, damaged]
    answer = client.get(f"/api/v1/jobs/{damaged}").json()
    assert answer["reason"] == f"the record is damaged: {column}"
    assert client.get("/metrics").status_code == 200


def test_jobs_are_found_by_what_they_read_as(any_url: str, any_store: JobStore, job: str) -> None:
    ended = job_id(2, bytes(10))
    any_store.create(ended, kind="train-student", unit="steps", host="h", pid=1, config={})
    any_store.transition(ended, State.RUNNING)
    any_store.transition(ended, State.FAILED)

    def found(status: str, stale_s: float, crashed_s: float) -> list[str]:
        app = create_app(any_url, periods=Periods(stale_s, crashed_s))
        with TestClient(app, "http://127.0.0.1") as client:
            rows = client.get("/api/v1/jobs", params={"status": status}).json()["jobs"]
        return [row["id"] for row in rows]

    for periods, reads in (((900, 1800), "running"), ((0, 1800), "stale"), ((0, 0), "crashed")):
        for status in ("running", "stale", "crashed"):
            assert found(status, *periods) == ([job] if status == reads else [])
        assert found("failed", *periods) == [ended]
