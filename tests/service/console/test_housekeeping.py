"""`jobs rm`, `prune` and `export`, on real records: from the database and through a service."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_service import live_service
from sqlalchemy import func, select, text

from service.console.housekeeping import age_s
from service.console.job_source import HttpJobs, JobSourceError
from service.console.stored_jobs import StoredJobs
from service.jobs import Periods, State
from service.records.job_store import JobLivesError, JobStore
from service.records.rank_rows import Rank
from service.records.schema import metadata
from service.records.series import Point


def record(store: JobStore, job: str, *, end: State | None = None) -> str:
    """Let a job run, with a row in every table, and end it."""
    store.transition(job, State.RUNNING)
    store.heartbeat(job, rank=Rank(0, "h", 1), points=[Point("loss", step, 0.5) for step in (1, 2)])
    if end is not None:
        store.transition(job, end)
    return job


def rows(store: JobStore, job: str) -> int:
    """How many rows of any table are a job's."""
    with store._database.reading() as connection:
        assert connection is not None
        tables = [table for table in metadata.sorted_tables if "job" in table.c]
        counts = [
            connection.scalar(select(func.count()).select_from(table).where(table.c.job == job))
            for table in tables
        ]
    assert len(tables) >= 3
    return sum(count or 0 for count in counts) + (store.get(job) is not None)


def age(store: JobStore, job: str, seconds: float) -> None:
    """Make a job's heartbeat older, as time would."""
    with store._database.writing() as connection:
        change = text(f"UPDATE jobs SET heartbeat = heartbeat - {seconds} WHERE id = :job")
        connection.execute(change, {"job": job})


def test_a_removed_job_leaves_nothing_and_takes_nothing_of_others(
    any_store: JobStore, create: Callable[..., str]
) -> None:
    first = record(any_store, create(any_store, 1), end=State.FAILED)
    second = record(any_store, create(any_store, 2), end=State.SUCCEEDED)
    kept = rows(any_store, second)
    assert any_store.remove(first, Periods()) is True
    assert (rows(any_store, first), rows(any_store, second)) == (0, kept)
    assert any_store.remove(first, Periods()) is False


def test_a_job_that_may_still_write_is_kept(
    any_store: JobStore, create: Callable[..., str]
) -> None:
    job = record(any_store, create(any_store))
    for silent_s in (0.0, 60.0):  # running, stale
        age(any_store, job, silent_s)
        with pytest.raises(JobLivesError, match="has not ended: cancel it"):
            any_store.remove(job, Periods())
    age(any_store, job, 100.0)
    assert any_store.remove(job, Periods()) is True


def test_who_resumed_a_removed_job_resumed_what_that_one_did(store: JobStore) -> None:
    jobs = [f"{number:032x}" for number in (1, 2, 3)]
    for job in jobs:
        store.create(
            job, kind="train-student", unit="steps", host="h", pid=1, config={}, target="run"
        )
        record(store, job, end=State.FAILED)
    store.remove(jobs[1], Periods())
    found = store.get(jobs[2])
    assert found is not None
    assert found.record.resumed_from == jobs[0]


@pytest.mark.parametrize("served", [False, True])
def test_prune_removes_what_is_old_and_has_ended_so(
    cli: Callable[..., Any],
    url: str,
    store: JobStore,
    create: Callable[..., str],
    served: bool,
) -> None:
    old, young = (record(store, create(store, number), end=State.FAILED) for number in (1, 2))
    done, crashed = (
        record(store, create(store, 3), end=State.SUCCEEDED),
        record(store, create(store, 4)),
    )
    for job in (old, done, crashed):
        age(store, job, 31 * 86_400.0)
    with live_service(url) as base:
        more = ("--url", base) if served else ()

        def prune(*arguments: str) -> str:
            asked = ("jobs", "prune", "--older-than", "30d", *arguments, *more)
            said: str = cli(*asked, env={"RETORT_DB": url}).stdout
            return said

        assert prune("--dry-run").endswith("3 jobs\n")
        assert prune("--state", "crashed") == f"removed {crashed} (crashed)\n1 jobs\n"
        assert prune() == f"removed {done} (succeeded)\nremoved {old} (failed)\n2 jobs\n"
        removed = cli("jobs", "rm", young[:12], *more, env={"RETORT_DB": url}).stdout
    assert removed == f"removed {young}\n"
    assert store.list().jobs == ()


def test_rm_removes_nothing_where_one_of_several_is_unknown_or_alive(
    cli: Callable[..., Any], url: str, store: JobStore, create: Callable[..., str]
) -> None:
    ended, alive = (
        record(store, create(store, 1), end=State.FAILED),
        record(store, create(store, 2)),
    )
    unknown = cli("jobs", "rm", ended, "f" * 12, check=1, env={"RETORT_DB": url}).stderr
    assert "expected a job's id" in unknown
    assert store.get(ended) is not None
    lives = cli("jobs", "rm", alive, check=1, env={"RETORT_DB": url}).stderr
    assert "has not ended" in lives
    with live_service(url) as base:
        lives = cli("jobs", "rm", alive, "--url", base, check=1).stderr
    assert "has not ended" in lives
    assert "(409)" in lives


def test_export_writes_all_that_is_known_a_line_a_job(
    cli: Callable[..., Any], url: str, store: JobStore, create: Callable[..., str], tmp_path: Path
) -> None:
    first = record(store, create(store, 1), end=State.FAILED)
    second = record(store, create(store, 2))
    cli("jobs", "export", "--out", "jobs.jsonl", env={"RETORT_DB": url})
    lines = [json.loads(line) for line in (tmp_path / "jobs.jsonl").read_text().splitlines()]
    assert [line["job"]["id"] for line in lines] == [first, second]
    (loss,) = lines[0]["metrics"]
    assert (loss["name"], loss["steps"], loss["last"]) == ("loss", [1, 2], [0.5, 0.5])
    assert [event["text"] for event in lines[0]["events"]] == ["pending", "running", "failed"]
    assert [rank["rank"] for rank in lines[0]["ranks"]] == [0]
    one = cli("jobs", "export", second[:12], env={"RETORT_DB": url}).stdout
    assert json.loads(one)["job"]["id"] == second
    with live_service(url) as base:
        assert HttpJobs(base).metrics(first) == StoredJobs(url).metrics(first)


@pytest.mark.parametrize(
    ("given", "seconds"), [("30d", 2_592_000.0), ("12h", 43_200.0), ("90m", 5_400.0)]
)
def test_an_age_is_days_hours_or_minutes(given: str, seconds: float) -> None:
    assert age_s(given) == seconds
    for wrong in ("", "30", "d", "-1d", "1y", "1.5d"):
        with pytest.raises(JobSourceError, match="expected days, hours or minutes"):
            age_s(wrong)
