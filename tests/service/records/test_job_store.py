from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.jobs import IllegalTransitionError, JobRecord, State, job_id
from service.records.connections.database import sqlite_url
from service.records.job_store import JobStore, NoSuchJobError, open_store


def read(store: JobStore, job: str) -> JobRecord:
    found = store.get(job)
    assert found is not None
    return found.record


def test_a_new_job_is_pending_with_its_identity_and_the_database_s_stamps(
    any_store: JobStore, create: Callable[..., str]
) -> None:
    before = datetime.now(UTC)
    job = create(any_store)
    record = read(any_store, job)
    assert (record.id, record.kind, record.unit, record.host) == (
        job,
        "train-student",
        "steps",
        "gpu-1",
    )
    assert (record.state, record.pid, record.config) == (State.PENDING, 7, {"epochs": 3})
    assert (record.done, record.total, record.resumed, record.metrics) == (0, None, 0, {})
    assert (record.started, record.ended, record.progress_at) == (None, None, None)
    assert record.created == record.heartbeat
    assert abs((record.created - before).total_seconds()) < 5


def test_creating_twice_changes_nothing(any_store: JobStore, create: Callable[..., str]) -> None:
    job = create(any_store)
    any_store.transition(job, State.RUNNING)
    first = read(any_store, job)
    create(any_store)
    assert read(any_store, job) == first


def test_a_job_s_life_is_stamped_in_order(any_store: JobStore, create: Callable[..., str]) -> None:
    job = create(any_store)
    any_store.transition(job, State.RUNNING)
    progress = {"total": 10, "resumed": 2, "rate": 1.5, "eta_s": 4.0}
    state = any_store.update(job, done=4, metrics={"loss": 0.5, "kd": None}, **progress)
    assert state is State.RUNNING
    running = read(any_store, job)
    assert (running.done, running.total, running.resumed) == (4, 10, 2)
    assert (running.rate, running.eta_s) == (1.5, 4.0)
    assert running.metrics == {"loss": 0.5, "kd": None}
    any_store.transition(job, State.SUCCEEDED)
    ended = any_store.get(job)
    assert ended is not None
    record = ended.record
    assert record.started is not None
    assert record.ended is not None
    assert record.created <= record.started <= record.heartbeat <= ended.now
    assert abs((record.ended - record.heartbeat).total_seconds()) < 0.1
    assert record.eta_s is None
    assert record.rate == 1.5


def test_a_job_that_has_ended_takes_no_more_progress_and_no_heartbeat(
    any_store: JobStore, create: Callable[..., str]
) -> None:
    job = create(any_store)
    any_store.transition(job, State.RUNNING)
    any_store.transition(job, State.FAILED, "non-finite loss")
    ended = read(any_store, job)
    late = {"total": 10, "resumed": 0, "rate": 9.0, "eta_s": 1.0, "metrics": {"loss": 1.0}}
    assert any_store.update(job, done=9, **late) is State.FAILED
    assert any_store.heartbeat(job) is State.FAILED
    assert read(any_store, job) == ended
    assert ended.reason == "non-finite loss"


def test_progress_at_stands_still_while_a_hung_job_beats(
    any_store: JobStore, create: Callable[..., str]
) -> None:
    job = create(any_store)
    any_store.transition(job, State.RUNNING)
    same = {"total": 10, "resumed": 0, "rate": None, "eta_s": None, "metrics": {}}
    any_store.update(job, done=5, **same)
    first = read(any_store, job)
    for _ in range(3):
        any_store.update(job, done=5, **same)
        any_store.heartbeat(job)
    later = read(any_store, job)
    assert first.progress_at == later.progress_at is not None
    assert later.heartbeat > first.heartbeat


def test_a_job_that_the_database_does_not_hold_cannot_be_written(any_store: JobStore) -> None:
    absent = job_id(9, bytes(10))
    with pytest.raises(NoSuchJobError, match=absent):
        any_store.heartbeat(absent)
    with pytest.raises(NoSuchJobError, match=absent):
        any_store.transition(absent, State.RUNNING)
    assert any_store.get(absent) is None
    assert any_store.list().jobs == ()


@pytest.mark.parametrize("text", ["", "'; DROP TABLE jobs; --", "a\0b", "../../etc", "é" * 60_000])
def test_what_is_no_id_names_no_job(
    any_store: JobStore, text: str, create: Callable[..., str]
) -> None:
    create(any_store)
    assert any_store.get(text) is None
    assert len(any_store.list().jobs) == 1


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    targets=st.lists(st.sampled_from(State), max_size=8),
    entropy=st.binary(min_size=10, max_size=10),
)
def test_the_stored_state_moves_as_the_state_machine_allows_and_not_otherwise(
    any_store: JobStore, targets: list[State], entropy: bytes
) -> None:
    job = job_id(1, entropy)
    any_store.create(job, kind="k", unit="u", host="h", pid=1, config={})
    state = read(any_store, job).state  # of an earlier example, where its entropy is repeated
    for target in targets:
        if target in state.successors:
            any_store.transition(job, target)
            state = target
        else:
            with pytest.raises(IllegalTransitionError) as refused:
                any_store.transition(job, target, "not to be stored")
            assert (refused.value.current, refused.value.target) == (state, target)
        record = read(any_store, job)
        assert record.state is state
        assert (record.ended is not None) == state.is_final
        assert record.reason is None


def test_jobs_that_begin_at_once_are_all_recorded(
    any_store: JobStore, create: Callable[..., str]
) -> None:
    numbers = range(1, 81)
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda number: create(any_store, number), numbers))
    assert [job.record.id for job in any_store.list(limit=200).jobs] == jobs[::-1]


def test_of_ends_that_race_exactly_one_is_stored(
    any_store: JobStore, create: Callable[..., str]
) -> None:
    ends = [State.SUCCEEDED, State.FAILED, State.CANCELLED]
    for number in range(5):
        job = create(any_store, number)
        any_store.transition(job, State.RUNNING)
        any_store.transition(job, State.CANCELLING)

        def end(target: State, job: str = job) -> State | None:
            try:
                any_store.transition(job, target, target.value)
            except IllegalTransitionError:
                return None
            return target

        with ThreadPoolExecutor(6) as pool:
            won = [target for target in pool.map(end, ends * 2) if target is not None]
        record = read(any_store, job)
        assert won == [record.state]
        assert record.reason == record.state.value


def test_pages_hold_every_job_once_newest_first_while_jobs_begin(
    any_store: JobStore, create: Callable[..., str]
) -> None:
    jobs = [create(any_store, number) for number in range(1, 8)]
    seen: list[str] = []
    page = any_store.list(limit=3)
    while True:
        seen += [job.record.id for job in page.jobs]
        if page.next_cursor is None:
            break
        create(any_store, 100 + len(seen))  # newer than all: belongs to no later page
        page = any_store.list(limit=3, cursor=page.next_cursor)
    assert seen == jobs[::-1]


def test_a_page_that_is_just_full_has_no_next(
    any_store: JobStore, create: Callable[..., str]
) -> None:
    for number in range(3):
        create(any_store, number)
    assert any_store.list(limit=3).next_cursor is None
    assert any_store.list(limit=2).next_cursor is not None


def test_jobs_are_listed_by_state_and_kind(any_store: JobStore, create: Callable[..., str]) -> None:
    cache, train = create(any_store, 1, "cache-teacher"), create(any_store, 2)
    any_store.transition(cache, State.RUNNING)
    assert [job.record.id for job in any_store.list(state=State.RUNNING).jobs] == [cache]
    assert [job.record.id for job in any_store.list(kind="train-student").jobs] == [train]
    assert any_store.list(state=State.RUNNING, kind="train-student").jobs == ()


def test_without_a_database_there_are_no_jobs(tmp_path: Path) -> None:
    store = open_store(sqlite_url(tmp_path / "none.db"))
    store.check()
    assert store.list().jobs == ()
    assert store.get("0" * 32) is None
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_was_replaced_is_read_at_once(
    file: Path, url: str, create: Callable[..., str]
) -> None:
    store = open_store(url)
    store.prepare()
    create(store)
    assert len(store.list().jobs) == 1
    for part in file.parent.iterdir():
        part.unlink()
    assert store.list().jobs == ()
    store.prepare()
    job = create(store, 2)
    assert [found.record.id for found in store.list().jobs] == [job]
