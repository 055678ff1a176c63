"""What a cache keeps of the teacher's answers, without the library that computes them.

Shapes: B rows, K kept classes, T temperatures.
"""

from dataclasses import dataclass

import numpy as np

LOWEST_LOGP = -65504.0
"""The lowest finite float16, in nats: lower log-probabilities are stored as this."""

FILL_ID = 65535
"""The `ids` array's fill value: a uint16 class id must stay below it."""


@dataclass(frozen=True, slots=True)
class TopK:
    """The teacher's answer for B rows, as the cache stores it (all natural logarithms)."""

    ids_BK: np.ndarray
    """Class ids, best first, equal logits by lower id; uint16, uint32 past 65,535 classes."""
    logp_BK: np.ndarray
    """float16: logit minus the row's logsumexp over all C classes, at temperature 1."""
    tail_BT: np.ndarray
    """float16: per temperature tau, logsumexp of logp / tau over the C - K other classes."""
