"""Means over seeds, paired differences, and what becomes of a claim. Pure."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from student.study.rows import Row, Study

# Student's t: the 97.5% quantile for 1 to 30 degrees of freedom; beyond, the normal distribution's.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL = 1.960


class Verdict(StrEnum):
    """What a study's runs say of a claim."""

    HELD = "held"
    CONTRADICTED = "contradicted"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row beside its base, in points of top-1."""

    row: Row
    base: Row
    top1: Mapping[int, float]
    """Seed -> top-1 in percent, of the runs that have ended."""
    differences: tuple[float, ...]
    """To the base's run of the same seed."""
    alike: float

    @property
    def mean(self) -> float | None:
        """Of top-1 over the seeds."""
        return statistics.mean(self.top1.values()) if self.top1 else None

    @property
    def deviation(self) -> float | None:
        """The standard deviation of top-1 over the seeds."""
        return statistics.stdev(self.top1.values()) if len(self.top1) > 1 else None

    @property
    def difference(self) -> float | None:
        """The mean of the paired differences."""
        return statistics.mean(self.differences) if self.differences else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% interval of the mean difference (Student's t); None for fewer than two pairs."""
        count = len(self.differences)
        if count < 2:
            return None
        t = _T[count - 2] if count - 2 < len(_T) else _NORMAL
        half = t * statistics.stdev(self.differences) / math.sqrt(count)
        middle = statistics.mean(self.differences)
        return middle - half, middle + half

    @property
    def claim(self) -> str | None:
        """`higher`, `lower` or `alike`: the row's own, or what the published figures say."""
        if self.row.claim or self.row.name == self.base.name:
            return self.row.claim
        if self.row.published is None or self.base.published is None:
            return None
        if self.row.published == self.base.published:
            return "alike"
        return "higher" if self.row.published > self.base.published else "lower"

    @property
    def verdict(self) -> Verdict | None:
        """What the interval says of the claim; None where nothing is claimed."""
        if self.claim is None:
            return None
        if self.interval is None:
            return Verdict.UNDECIDED
        low, high = self.interval
        if self.claim == "alike":
            holds, fails = (
                -self.alike <= low and high <= self.alike,
                low > self.alike or high < -self.alike,
            )
        elif self.claim == "higher":
            holds, fails = low > 0, high < 0
        else:
            holds, fails = high < 0, low > 0
        return Verdict.HELD if holds else Verdict.CONTRADICTED if fails else Verdict.UNDECIDED


def compare(study: Study, top1: Mapping[str, Mapping[int, float]]) -> list[Comparison]:
    """Every row beside its base.

    Args:
        study: its rows.
        top1: row -> seed -> top-1 in percent; rows that were not run are left out.
    """
    found = []
    for row in study.rows:
        if row.name not in top1:
            continue
        base = study.base_of(row)
        mine, others = top1[row.name], top1.get(base.name, {})
        pairs = () if base.name == row.name else sorted(mine.keys() & others.keys())
        differences = tuple(mine[seed] - others[seed] for seed in pairs)
        found.append(Comparison(row, base, dict(mine), differences, study.alike))
    return found
