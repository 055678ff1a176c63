"""What a cache keeps of the teacher's answers, without the library that computes them.

Shapes: B rows, K kept classes, T temperatures.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

LOWEST_LOGP = -65504.0
"""The lowest finite float16, in nats: lower log-probabilities are stored as this."""

ROWS_PER_CHECK = 32
"""Row 32 j + (v mod 32) of view v is checked: 32 views check every image."""

CHUNK_ROWS = 4096
"""Rows of an inner chunk, where a shard has as many."""

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
    moments_B2: np.ndarray | None = None
    """float16: mean and standard deviation of logp over all C classes; None where not asked for."""


class Encoding(StrEnum):
    """Which codecs make the bytes of a record's chunk."""

    DEFAULT = "default"
    """pcodec and CRC-32C: small, and the fastest to read."""
    PORTABLE = "portable"
    """Little-endian bytes, zstd, CRC-32C: only codecs that every Zarr v3 reader knows."""
    COMPACT = "compact"
    """As default, with logp in steps of its square root: the smallest, and not exact."""


class Tail(StrEnum):
    """What stands for the teacher's mass outside its k best classes in the loss."""

    UNIFORM = "uniform"
    """Spread evenly over the C - k other classes: the guess of most entropy."""
    BUCKET = "bucket"
    """One (k+1)-th class for teacher and student: a proper KL, a lower bound of the dense one."""
    RENORMALIZE = "renormalize"
    """Ignored, the k best rescaled to 1: pushes the other classes to 0. For comparison only."""
    DROP = "drop"
    """Ignored, the k best as they are: no KL, can be negative. For comparison only."""


def checked_rows(view: int, rows: range) -> np.ndarray:
    """int64: which of some rows have their pixels' CRC-32 in view `view`'s `check` array.

    Args:
        view: the number of the view.
        rows: consecutive rows from a multiple of `ROWS_PER_CHECK` on, such as a shard's.
    """
    return np.arange(rows.start + view % ROWS_PER_CHECK, rows.stop, ROWS_PER_CHECK)
