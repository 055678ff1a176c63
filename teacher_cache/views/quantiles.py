"""The quantile tables in tables/, which are committed, so that no libm can change a view."""

from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Quantiles(NamedTuple):
    """Three distributions as 4,096 integers each, in Q16 (units of 2^-16).

    Entry i is the quantile of (i + 0.5) / 4096, rounded to nearest. Whoever draws an index evenly
    draws an entry from the distribution.
    """

    crop_ratio: tuple[int, ...]
    """Log-uniform on 3/4..4/3."""
    erase_ratio: tuple[int, ...]
    """Log-uniform on 3/10..10/3."""
    standard_normal: tuple[int, ...]


@cache
def quantiles() -> Quantiles:
    """Read the tables (once per process)."""
    folder = files("teacher_cache.views") / "tables"
    return Quantiles(
        *(
            tuple(map(int, (folder / f"{name}.txt").read_text("ascii").split()))
            for name in Quantiles._fields
        )
    )
