"""top_k: against float64, ties by lower id, tails that never cancel."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.special import logsumexp

from teacher_cache.teacher.answers import LOWEST_LOGP, top_k

TEMPERATURES = (0.5, 1.0, 2.0, 4.0)

# Half a unit in float16's last place, and its smallest step near 0.
CLOSE = {"rtol": 2.0**-11 + 1e-6, "atol": 2.0**-24}


@st.composite
def logits_and_k(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Finite logits with many ties, ordinary ones, and ones at the ends of float32."""
    rows, classes = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    elements = draw(
        st.sampled_from(
            [
                st.sampled_from([-1.0, -0.0, 0.0, 1.0]),
                st.floats(-30, 30, width=32),
                st.floats(allow_nan=False, allow_infinity=False, width=32),
            ]
        )
    )
    logits = draw(hnp.arrays(np.float32, (rows, classes), elements=elements))
    return logits, draw(st.integers(1, classes))


def reference(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, logp, tails in float64, the plain way."""
    logp = logits.astype(np.float64)
    logp = logp - logp.max(axis=1, keepdims=True)  # else 10^12 leaves three digits of log 2
    logp = logp - logsumexp(logp, axis=1, keepdims=True)
    ids = np.stack([sorted(range(logits.shape[1]), key=lambda c: (-row[c], c)) for row in logits])
    ranked = np.take_along_axis(logp, ids, axis=1)
    with np.errstate(divide="ignore"):
        tails = [
            logsumexp(ranked[:, k:] / tau, axis=1)
            if k < logits.shape[1]
            else np.full(len(logits), -np.inf)
            for tau in TEMPERATURES
        ]
    return ids[:, :k], ranked[:, :k], np.stack(tails, axis=1)


@given(logits_and_k())
@settings(deadline=None, max_examples=200)
def test_records_are_the_float64_ones_rounded_to_float16(case: tuple[np.ndarray, int]) -> None:
    logits, k = case
    ids, logp, tail = reference(logits, k)
    got = top_k(torch.from_numpy(logits), k=k, temperatures=TEMPERATURES)
    np.testing.assert_array_equal(got.ids_BK, ids)
    np.testing.assert_allclose(
        got.logp_BK.astype(np.float64), np.maximum(logp, LOWEST_LOGP), **CLOSE
    )
    finite = k < logits.shape[1]
    expected = np.maximum(tail, LOWEST_LOGP) if finite else tail
    np.testing.assert_allclose(got.tail_BT.astype(np.float64), expected, **CLOSE)
    assert got.logp_BK.dtype == got.tail_BT.dtype == np.float16
    assert np.isfinite(got.logp_BK).all()
    assert np.isfinite(got.tail_BT).all() == finite


@given(logits_and_k())
@settings(deadline=None)
def test_a_row_does_not_depend_on_its_neighbours(case: tuple[np.ndarray, int]) -> None:
    logits, k = case
    together = top_k(torch.from_numpy(logits), k=k, temperatures=TEMPERATURES)
    for row in range(len(logits)):
        alone = top_k(torch.from_numpy(logits[row : row + 1]), k=k, temperatures=TEMPERATURES)
        np.testing.assert_array_equal(alone.ids_BK[0], together.ids_BK[row])
        np.testing.assert_array_equal(alone.logp_BK[0], together.logp_BK[row])
        np.testing.assert_array_equal(alone.tail_BT[0], together.tail_BT[row])


def test_equal_logits_come_by_lower_id_inside_and_at_the_end_of_the_kept() -> None:
    logits = torch.zeros(2, 1000)
    logits[:, 500] = 1.0
    logits[1, 700] = 1.0
    got = top_k(logits, k=4, temperatures=[1.0])
    np.testing.assert_array_equal(got.ids_BK, [[500, 0, 1, 2], [500, 700, 0, 1]])


@pytest.mark.parametrize("tau", [1.0, 2.0, 4.0])
def test_kept_and_tail_make_the_teachers_softmax_at_every_temperature(tau: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4.0 * torch.randn(16, 300, generator=generator)
    got = top_k(logits, k=12, temperatures=[tau])
    dense = torch.softmax(logits.double() / tau, dim=1).numpy()
    scores = np.concatenate([got.logp_BK.astype(np.float64) / tau, got.tail_BT], axis=1)
    mass = np.exp(scores - logsumexp(scores, axis=1, keepdims=True))
    kept = np.take_along_axis(dense, got.ids_BK.astype(np.int64), axis=1)
    np.testing.assert_allclose(mass[:, :-1], kept, rtol=4e-3)
    np.testing.assert_allclose(mass[:, -1], 1.0 - kept.sum(axis=1), rtol=4e-3)


def test_the_tail_of_a_certain_teacher_is_not_lost_to_cancellation() -> None:
    logits = torch.zeros(1, 1001)
    logits[0, 7] = 60.0  # 1 - p is far below float64's resolution at 1
    got = top_k(logits, k=1, temperatures=[1.0])
    assert got.tail_BT[0, 0] == pytest.approx(np.log(1000) - 60.0, abs=0.02)


def test_ids_take_two_bytes_while_the_fill_value_stays_free() -> None:
    assert top_k(torch.zeros(1, 65_535), k=1, temperatures=[1.0]).ids_BK.dtype == np.uint16
    wide = torch.zeros(1, 65_536)
    wide[0, -1] = 1.0
    got = top_k(wide, k=1, temperatures=[1.0])
    assert got.ids_BK.dtype == np.uint32
    assert got.ids_BK[0, 0] == 65_535


def test_no_temperatures_and_no_rows_give_empty_arrays_of_the_right_shape() -> None:
    assert top_k(torch.zeros(3, 5), k=2, temperatures=[]).tail_BT.shape == (3, 0)
    assert top_k(torch.zeros(0, 5), k=2, temperatures=[1.0]).logp_BK.shape == (0, 2)


@pytest.mark.parametrize("k", [0, -1, 6])
def test_k_outside_the_classes_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k is {k}, expected 1 to 5"):
        top_k(torch.zeros(2, 5), k=k, temperatures=[1.0])


def test_rows_that_are_not_finite_are_named() -> None:
    logits = torch.zeros(20, 5)
    logits[3, 1], logits[7, 0], logits[19, 4] = torch.nan, torch.inf, -torch.inf
    with pytest.raises(ValueError, match="not finite in rows 3, 7, 19 of 20"):
        top_k(logits, k=1, temperatures=[1.0])
    with pytest.raises(ValueError, match="rows 0, 1, 2, 3, 4, 5, 6, 7 and 12 more of 20"):
        top_k(torch.full_like(logits, torch.nan), k=1, temperatures=[1.0])


@pytest.mark.parametrize("tau", [0.0, -1.0, np.nan, np.inf])
def test_a_temperature_that_is_none_is_refused(tau: float) -> None:
    with pytest.raises(ValueError, match="expected finite numbers above 0"):
        top_k(torch.zeros(2, 5), k=1, temperatures=[1.0, tau])


def test_half_precision_logits_are_refused_because_they_tie() -> None:
    with pytest.raises(ValueError, match=r"torch.bfloat16 \(2, 5\), expected torch.float32"):
        top_k(torch.zeros(2, 5, dtype=torch.bfloat16), k=1, temperatures=[1.0])
