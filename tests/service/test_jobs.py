from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.jobs import (
    JobRecord,
    Observed,
    Periods,
    Sample,
    State,
    Status,
    eta_s,
    is_job_id,
    job_id,
    rate_per_s,
    windowed,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
states = st.sampled_from(State)


def observed(state: State, age_s: float) -> Observed:
    beat = NOW - timedelta(seconds=age_s)
    record = JobRecord("0" * 32, "k", "steps", created=beat, heartbeat=beat, state=state)
    return Observed(record, NOW)


def test_the_states_and_their_transitions_are_these() -> None:
    assert {state.value: {next_.value for next_ in state.successors} for state in State} == {
        "pending": {"running", "cancelling"},
        "running": {"succeeded", "failed", "cancelling"},
        "cancelling": {"cancelled", "succeeded", "failed"},
        "succeeded": set(),
        "failed": set(),
        "cancelled": set(),
    }


@given(st.lists(st.integers(0, 5)))
def test_every_walk_ends_in_a_final_state_within_three_steps(choices: list[int]) -> None:
    state, steps = State.PENDING, 0
    for choice in choices:
        if state.is_final:
            break
        state, steps = sorted(state.successors)[choice % len(state.successors)], steps + 1
    assert steps <= 3
    assert state.is_final == (not state.successors)


@given(states, states)
def test_predecessors_are_the_transitions_read_backwards(one: State, other: State) -> None:
    assert (one in other.predecessors) == (other in one.successors)
    assert one not in one.successors


@given(states, st.floats(0, 1e6))
def test_only_a_job_that_has_not_ended_reads_as_stale_or_crashed(
    state: State, age_s: float
) -> None:
    status = observed(state, age_s).status(Periods())
    if state.is_final or age_s < 29.9:
        assert status == state.value
    elif 30.1 < age_s < 119.9:
        assert status is Status.STALE
    elif age_s > 120.1:
        assert status is Status.CRASHED


def test_the_periods_begin_at_exactly_30_and_120_seconds() -> None:
    read = [observed(State.RUNNING, s).status(Periods()) for s in (29.999, 30, 119.999, 120)]
    assert read == [Status.RUNNING, Status.STALE, Status.STALE, Status.CRASHED]


def test_a_heartbeat_ahead_of_the_clock_has_no_negative_age() -> None:
    assert observed(State.RUNNING, -3).heartbeat_age_s == 0


@given(
    resumed=st.integers(0, 10**9),
    per_report=st.integers(1, 10**6),
    reports=st.integers(10, 800),
)
def test_at_a_constant_pace_the_rate_is_that_pace_whatever_was_resumed(
    resumed: int, per_report: int, reports: int
) -> None:
    samples: tuple[Sample, ...] = ()
    for i in range(reports):
        samples = windowed(samples, Sample(resumed + i * per_report, float(i)))
    assert rate_per_s(samples) == pytest.approx(per_report)
    assert len(samples) <= 302  # a window of five minutes, however long the job


@given(st.lists(st.tuples(st.integers(0, 10**12), st.floats(0, 1e4)), max_size=50))
def test_no_reports_in_any_order_give_a_negative_rate_or_one_without_warm_up(
    reports: list[tuple[int, float]],
) -> None:
    samples: tuple[Sample, ...] = ()
    for done, at_s in reports:
        samples = windowed(samples, Sample(done, at_s))
    rate = rate_per_s(samples)
    if rate is not None:
        assert rate > 0
        assert samples[-1].at_s - samples[0].at_s >= 5


def test_a_job_that_becomes_slow_is_seen_slow_after_the_window() -> None:
    samples: tuple[Sample, ...] = ()
    for second in range(1000):  # 100 a second for 500 s, then 1 a second
        done = 100 * min(second, 500) + max(0, second - 500)
        samples = windowed(samples, Sample(done, float(second)))
    assert rate_per_s(samples) == pytest.approx(1.0)


def test_a_window_shorter_than_one_report_is_still_spanned() -> None:
    samples = windowed(windowed((Sample(0, 0.0),), Sample(10, 1000.0)), Sample(20, 2000.0))
    assert samples == (Sample(10, 1000.0), Sample(20, 2000.0))
    assert rate_per_s(samples) == pytest.approx(0.01)


def test_there_is_no_rate_before_anything_was_done_or_while_it_warms_up() -> None:
    assert rate_per_s(()) is None
    assert rate_per_s([Sample(5, 0.0)]) is None
    assert rate_per_s([Sample(5, 0.0), Sample(5, 100.0)]) is None
    assert rate_per_s([Sample(5, 0.0), Sample(6, 4.9)]) is None
    assert rate_per_s([Sample(5, 0.0), Sample(10, 5.0)]) == 1.0
    assert rate_per_s([Sample(5, 0.0), Sample(10, 0.0)], warm_up_s=0) is None


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.floats(1e-6, 1e9))
def test_the_eta_is_what_remains_at_that_rate(done: int, total: int, rate: float) -> None:
    remaining_s = eta_s(done, total, rate)
    assert remaining_s is not None
    assert remaining_s * rate == pytest.approx(max(0, total - done))


def test_the_eta_is_null_without_a_total_or_a_rate() -> None:
    assert eta_s(1, None, 2.0) is None
    assert eta_s(1, 10, None) is None
    assert eta_s(1, 10, 0.0) is None
    assert eta_s(1, 10, 5e-324) is None


@given(st.integers(0, 2**48 - 1), st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_ids_sort_by_time(one_ms: int, other_ms: int, entropy: bytes) -> None:
    one, other = job_id(one_ms, entropy), job_id(other_ms, bytes(10))
    assert is_job_id(one)
    assert is_job_id(other)
    if one_ms != other_ms:
        assert (one < other) == (one_ms < other_ms)


def test_an_id_needs_ten_bytes_of_entropy() -> None:
    with pytest.raises(ValueError, match="got 3 bytes of entropy, expected 10"):
        job_id(0, b"abc")


@pytest.mark.parametrize("text", ["", "A" * 32, "0" * 31, "0" * 33, "0" * 31 + "\n", "٠" * 32])
def test_nothing_else_passes_for_an_id(text: str) -> None:
    assert not is_job_id(text)
