"""What mean and deviation of a teacher's log-probabilities must be beside the kept ones. Pure.

N rows, K kept classes, C classes, n = C - K; x_1 >= ... >= x_K are the kept log-probabilities, m is
the mean and d the standard deviation of all C. As in `invariants`, every stored number stands for
the range that rounds to it, and what is checked holds between the ends that favour it:

1.  m <= -log C, since the mean of a logarithm is at most the logarithm of the mean.
2.  No other class is likelier than the last kept one: C m <= sum x_i + n x_K. Where all classes are
    kept, C m = sum x_i.
3.  The others only add to the sum of squares: C d^2 >= sum (x_i - m)^2. Where all are kept, both
    are the same.
"""

import numpy as np

from teacher_cache.format.encodings import ranges_of_halves, ranges_of_logp
from teacher_cache.verification.invariants import Fault, Rules

_ROUNDING = 1e-9
"""Of sums in float64, relative to their largest term: a thousand times more than they are off."""


def fault_in_moments(
    logp_NK: np.ndarray, moments_N2: np.ndarray, absent_N: np.ndarray, rules: Rules
) -> Fault | None:
    """The first record whose mean and deviation no teacher can have given, and why not.

    Args:
        logp_NK: float16, as read from the rules' encoding; sound (`fault_in_records`).
        moments_N2: float16, mean and deviation.
        absent_N: bool: rows that must hold NaN, and are the only ones that may.
        rules: classes and encoding.
    """
    is_nan_N = np.isnan(moments_N2)
    wrong = np.flatnonzero(np.where(absent_N, ~is_nan_N.all(1), is_nan_N.any(1)))
    if len(wrong):
        return Fault(int(wrong[0]), "a mean and deviation where fill values belong, or none")
    rows = np.flatnonzero(~absent_N)
    with np.errstate(all="ignore"):
        possible_M = _possible(logp_NK[rows], moments_N2[rows], rules)
    wrong = rows[~possible_M]
    if not len(wrong):
        return None
    mean, deviation = moments_N2[wrong[0]].tolist()
    words = f"the mean {mean:.6g} and deviation {deviation:.6g} of all classes"
    return Fault(int(wrong[0]), f"{words}, which its kept classes rule out")


def _possible(logp_MK: np.ndarray, moments_M2: np.ndarray, rules: Rules) -> np.ndarray:
    classes, kept = rules.class_count, logp_MK.shape[1]
    lowest, highest = ranges_of_halves()
    bits_M2 = moments_M2.view(np.uint16)
    mean_low, mean_high = lowest[bits_M2[:, :1]], highest[bits_M2[:, :1]]
    deviation_low, deviation_high = lowest[bits_M2[:, 1]], highest[bits_M2[:, 1]]
    deviation_high[moments_M2[:, 1] == np.finfo(np.float16).max] = np.inf  # and all above it
    of_logp = ranges_of_logp(rules.encoding)
    x_low, x_high = (ends[logp_MK.view(np.uint16)] for ends in of_logp)
    scale = 1 + np.abs(mean_high[:, 0])
    slack = _ROUNDING * classes * scale
    most_sum = x_high.sum(1) + (classes - kept) * x_high[:, -1]
    away = np.maximum(np.maximum(mean_low - x_high, x_low - mean_high), 0)
    possible = (moments_M2[:, 1] >= 0) & (mean_low[:, 0] <= -np.log(classes))
    possible &= classes * mean_low[:, 0] <= most_sum + slack
    possible &= classes * deviation_high**2 >= (away**2).sum(1) * (1 - _ROUNDING)
    if kept == classes:
        furthest = np.maximum(np.abs(x_low - mean_high), np.abs(x_high - mean_low))
        possible &= classes * mean_high[:, 0] >= x_low.sum(1) - slack
        possible &= classes * np.maximum(deviation_low, 0) ** 2 <= (
            (furthest**2).sum(1) * (1 + _ROUNDING)
        )
    found: np.ndarray = possible
    return found
