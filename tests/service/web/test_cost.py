"""What is known is not said, read or sent again."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Page, expect
from sqlalchemy import event

from service.jobs import State
from service.records.connections.database import open_database
from service.records.job_store import JobStore
from service.records.series import Point, Series, SeriesCache


def test_a_list_says_only_what_changed_since_the_answer_before(
    store: JobStore, client: TestClient, create: Callable[..., str]
) -> None:
    jobs = [create(store, number) for number in range(1, 51)]
    full = client.get("/api/v1/jobs")
    assert (len(full.json()["jobs"]), full.json()["partial"]) == (50, False)
    since = {"since": full.headers["etag"]}
    store.transition(jobs[7], State.RUNNING)
    part = client.get("/api/v1/jobs", params=since)
    assert part.json()["partial"]
    assert [row["id"] for row in part.json()["jobs"]] == [jobs[7]]
    assert part.headers["etag"] == client.get("/api/v1/jobs").headers["etag"]
    assert len(part.content) < len(full.content) / 20
    unknown = client.get("/api/v1/jobs", params={"since": "another"}).json()
    assert (len(unknown["jobs"]), unknown["partial"]) == (50, False)
    create(store, 99)  # the page holds other jobs: the difference would not tell which
    assert not client.get("/api/v1/jobs", params=since).json()["partial"]


def test_answers_are_compressed_for_who_asks(
    store: JobStore, client: TestClient, create: Callable[..., str]
) -> None:
    for number in range(1, 51):
        create(store, number)
    answer = client.get("/api/v1/jobs", headers={"accept-encoding": "gzip"})
    assert answer.headers["content-encoding"] == "gzip"
    assert int(answer.headers["content-length"]) < len(answer.content) / 5
    plain = client.get("/api/v1/jobs", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers


def test_the_open_list_takes_in_what_changed_and_keeps_the_others(
    base: str, store: JobStore, create: Callable[..., str], open_tab: Callable[..., Page]
) -> None:
    first, second = (create(store, number) for number in (1, 2))
    page = open_tab(base)
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(2)
    store.transition(first, State.RUNNING)
    expect(rows.nth(1).locator(".status")).to_have_text("● running")
    expect(rows.nth(0).locator(".status")).to_have_text("○ pending")
    store.transition(second, State.RUNNING)
    expect(rows.nth(0).locator(".status")).to_have_text("● running")
    expect(rows.nth(1).locator(".status")).to_have_text("● running")


@pytest.mark.parametrize("points", [10, 160])
def test_a_series_that_grows_is_read_on_as_it_would_be_anew(
    any_store: JobStore, any_url: str, create: Callable[..., str], points: int
) -> None:
    job = create(any_store)
    cache, database = SeriesCache(), open_database(any_url)

    def read(by: SeriesCache) -> Series:
        with database.reading() as connection:
            assert connection is not None
            return by.series(connection, job, "loss", points)

    assert read(cache).steps == ()
    for begin, end in pairwise((7, 20, 21, 90, 91, 700, 3001, 3001)):
        values = [
            (step, None if step % 11 == 0 else (step * 7919) % 1009) for step in range(begin, end)
        ]
        any_store.heartbeat(job, points=[Point("loss", step, value) for step, value in values])
        assert read(cache) == read(SeriesCache())


def test_a_series_that_is_asked_for_again_is_not_read_again(
    store: JobStore, url: str, create: Callable[..., str]
) -> None:
    job = create(store)
    store.heartbeat(job, points=[Point("loss", step, 1.0) for step in range(5000)])
    cache, database, begins = SeriesCache(), open_database(url), []
    with database.reading() as connection:
        assert connection is not None

        def kept(_c: object, _k: object, statement: str, given: object, *_: object) -> None:
            if "GROUP BY" in statement:
                begins.append(given)

        event.listen(connection, "before_cursor_execute", kept)
        for _ in range(2):
            cache.series(connection, job, "loss", 160)
            cache.names(connection, job)
    assert len(begins) == 4
    first = [max(x for x in tuple(each) if isinstance(x, int)) for each in begins]
    # at first all, where a bucket's width is the largest number; then from the last bucket on
    assert first == [32, 512, 4992, 4608]
