"""learning_rate: timm's per-update cosine, and its ends."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.step_lr import StepLRScheduler

from student.schedule import learning_rate, stepped_rate


@st.composite
def runs(draw: st.DrawFn) -> dict[str, float]:
    total_steps = draw(st.integers(2, 5_000))
    peak = draw(st.floats(1e-6, 10.0))
    return {
        "total_steps": total_steps,
        "warmup_steps": draw(st.integers(0, total_steps - 1)),
        "peak": peak,
        "minimum": peak * draw(st.sampled_from([0.0, 0.1, 1.0])),
    }


@given(runs(), st.data())
@settings(deadline=None, max_examples=200)
def test_it_is_timms_cosine_stepped_per_update(run: dict[str, float], data: st.DataObject) -> None:
    step = data.draw(st.integers(0, int(run["total_steps"])))
    warmup = int(run["warmup_steps"])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=run["peak"])
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=int(run["total_steps"]) - warmup,
        lr_min=run["minimum"],
        warmup_t=warmup,
        warmup_lr_init=run["peak"] / (warmup + 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )
    scheduler.step_update(num_updates=step)
    expected = optimizer.param_groups[0]["lr"]
    assert learning_rate(step, **run) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(runs())
def test_it_starts_above_zero_peaks_after_the_warmup_and_ends_at_the_minimum(
    run: dict[str, float],
) -> None:
    warmup, total = int(run["warmup_steps"]), int(run["total_steps"])
    assert learning_rate(0, **run) > 0.0
    assert learning_rate(warmup, **run) == pytest.approx(run["peak"], rel=1e-12)
    assert learning_rate(total, **run) == pytest.approx(run["minimum"], abs=1e-15)


@given(runs())
@settings(max_examples=20)
def test_it_rises_every_step_of_the_warmup_and_falls_after(run: dict[str, float]) -> None:
    warmup, total = int(run["warmup_steps"]), int(run["total_steps"])
    rates = [learning_rate(step, **run) for step in range(total + 1)]
    rising, falling = rates[: warmup + 1], rates[warmup:]
    assert all(a < b for a, b in pairwise(rising))
    assert all(a >= b for a, b in pairwise(falling))
    assert max(rates) <= run["peak"] * (1 + 1e-12)


def test_the_papers_halfway_point_is_half_the_peak() -> None:
    rate = learning_rate(300, total_steps=600, warmup_steps=0, peak=0.005, minimum=0.0)
    assert rate == pytest.approx(0.0025)


@pytest.mark.parametrize(
    ("step", "changed", "message"),
    [
        (0, {"warmup_steps": 10}, "warm-up takes 10 of 10 steps, expected 0 to 9"),
        (0, {"warmup_steps": -1}, "warm-up takes -1 of 10 steps"),
        (0, {"total_steps": 0, "warmup_steps": 0}, "warm-up takes 0 of 0 steps"),
        (11, {}, "step is 11, expected 0 to 10"),
        (-1, {}, "step is -1, expected 0 to 10"),
        (0, {"minimum": 0.2}, "goes from 0.1 to 0.2"),
        (0, {"minimum": -0.1}, "goes from 0.1 to -0.1"),
        (0, {"peak": float("nan")}, "goes from nan"),
    ],
)
def test_arguments_out_of_range_are_refused(
    step: int, changed: dict[str, float], message: str
) -> None:
    run = {"total_steps": 10, "warmup_steps": 2, "peak": 0.1, "minimum": 0.0} | changed
    with pytest.raises(ValueError, match=message):
        learning_rate(step, **run)  # type: ignore[arg-type]


@given(
    st.integers(0, 50), st.floats(0.3, 200.0), st.floats(0.01, 1.0), st.floats(1e-6, 10.0),
    st.integers(0, 5_000),
)  # fmt: skip
@settings(deadline=None, max_examples=200)
def test_steps_are_timms_stepped_per_update(
    warmup: int, decay_steps: float, decay_rate: float, peak: float, step: int
) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = StepLRScheduler(
        optimizer,
        decay_t=decay_steps,
        decay_rate=decay_rate,
        warmup_t=warmup,
        warmup_lr_init=peak / (warmup + 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )
    scheduler.step_update(step)
    found = stepped_rate(
        step, warmup_steps=warmup, peak=peak, decay_steps=decay_steps, decay_rate=decay_rate
    )
    assert found == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
