"""Metrics over a job's steps: stored point by point, read whole or as buckets of min and max."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import groupby
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Connection,
    Double,
    and_,
    bindparam,
    func,
    select,
    type_coerce,
)

from service.records.schema import database_now, insert_or_not, metrics_table

STANDS_S = 60.0
"""For so long the part of a series that is past is believed to stand."""
_KEPT = 512
_FEW = 16
_m = metrics_table.c
_OF_THIS = and_(_m.job == bindparam("job_id"), _m.name == bindparam("series"))
_NEXT_NAME = select(func.min(_m.name)).where(
    _m.job == bindparam("job_id"), _m.name > bindparam("series")
)
# each end by itself is one look into the index; both in one query are a walk through all
_ENDS = select(
    select(func.min(_m.step)).where(_OF_THIS).scalar_subquery().label("first"),
    select(func.max(_m.step)).where(_OF_THIS).scalar_subquery().label("last"),
)
_GROUPS = (
    select(
        func.min(_m.value).label("low"),
        func.max(_m.value).label("high"),
        func.max(_m.step).label("step"),
        func.count().label("count"),
    )
    .where(_OF_THIS, _m.step >= bindparam("begin", type_=BigInteger))
    .group_by(_m.step // bindparam("width", type_=BigInteger))
    .subquery()
)
_BUCKETS = (
    select(_m.step, _m.time, _GROUPS.c.low, _GROUPS.c.high, _m.value, _GROUPS.c["count"])
    .join(metrics_table, and_(_OF_THIS, _m.step == _GROUPS.c.step))
    .order_by(_m.step)
)


@dataclass(frozen=True, slots=True)
class Point:
    """One value of a metric; None where it is not finite."""

    name: str
    step: int
    value: float | None
    age_s: float = 0.0
    """How long ago it was measured."""


@dataclass(frozen=True, slots=True)
class SeriesName:
    """A metric that a job has points of."""

    name: str
    points: int
    last_step: int
    last_value: float | None


@dataclass(frozen=True, slots=True)
class Series:
    """A metric over steps: one entry a bucket, or a point where nothing was left out.

    `steps` and `times` (seconds since 1970) are of the last point of each bucket. A bucket's
    minimum is None where none of its values is finite.
    """

    name: str
    steps: tuple[int, ...]
    times: tuple[float, ...]
    min: tuple[float | None, ...]
    max: tuple[float | None, ...]
    last: tuple[float | None, ...]
    raw_points: int


class _Bucket(NamedTuple):
    """The points of `width` neighbouring steps: the last one, the extremes, how many they are."""

    step: int
    time: float
    low: float | None
    high: float | None
    value: float | None
    points: int


@dataclass(slots=True)
class _Kept:
    """The buckets of a series as they were read last."""

    first: int | None
    made_s: float
    width: int = 1
    buckets: list[_Bucket] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many points they are."""
        return sum(bucket.points for bucket in self.buckets)

    def widen(self) -> None:
        """Make one bucket of two neighbouring ones."""
        self.width *= 2
        pairs = groupby(self.buckets, lambda bucket: bucket.step // self.width)
        self.buckets = [reduce(_joined, pair) for _, pair in pairs]

    def drop_last(self) -> int:
        """Drop the last bucket, which may have grown; return the step that it begins with."""
        return self.buckets.pop().step // self.width * self.width


def _joined(one: _Bucket, later: _Bucket) -> _Bucket:
    lows = [low for low in (one.low, later.low) if low is not None]
    highs = [high for high in (one.high, later.high) if high is not None]
    return later._replace(
        low=min(lows, default=None), high=max(highs, default=None), points=one.points + later.points
    )


def add_points(connection: Connection, job_id: str, points: Sequence[Point]) -> None:
    """Store points; of two of the same step the first stays, so that a repetition is harmless."""
    if not points:
        return
    measured = type_coerce(database_now(), Double) - bindparam("age_s", type_=Double)
    values: dict[str, Any] = {
        name: bindparam(f"p_{name}") for name in ("job", "name", "step", "value")
    }
    new = insert_or_not(connection, metrics_table).values(**values, time=measured)
    connection.execute(
        new.on_conflict_do_nothing(),
        [
            {
                "p_job": job_id,
                "p_name": point.name[:64],
                "p_step": point.step,
                "p_value": point.value,
                "age_s": point.age_s,
            }
            for point in points
        ],
    )


class SeriesCache:
    """What was read of series, so that a reader who asks again costs what is new alone.

    A point's bucket is its step over a power of two, so a bucket that is past never changes, and
    two make one where the steps outgrow them. A job whose steps go back, or whose points are
    removed, is seen once its entry is older than `STANDS_S`.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, int], _Kept] = OrderedDict()
        self._lock = threading.Lock()

    def names(self, connection: Connection, job_id: str) -> tuple[SeriesName, ...]:
        """Return the names of the metrics that a job has points of, in order."""
        with self._lock:
            return tuple(
                self._name(connection, job_id, name) for name in _names(connection, job_id)
            )

    def series(self, connection: Connection, job_id: str, name: str, points: int) -> Series:
        """Return one metric in at most `points` entries; empty where the job has none."""
        with self._lock:
            kept = self._read(connection, job_id, name, points)
        if kept.count <= points:
            of_this = and_(_m.job == job_id, _m.name == name)
            query = select(_m.step, _m.time, _m.value).where(of_this).order_by(_m.step)
            rows = connection.execute(query.limit(points)).all()
            steps, times, values = zip(*rows, strict=True) if rows else ((), (), ())
            return Series(name, steps, times, values, values, values, len(rows))
        columns = zip(*kept.buckets, strict=True)
        steps, times, low, high, values, _ = columns
        return Series(name, steps, times, low, high, values, kept.count)

    def _name(self, connection: Connection, job_id: str, name: str) -> SeriesName:
        kept = self._read(connection, job_id, name, _FEW)
        last = kept.buckets[-1]
        return SeriesName(name, kept.count, last.step, last.value)

    def _read(self, connection: Connection, job_id: str, name: str, points: int) -> _Kept:
        key, now_s = (job_id, name, points), time.monotonic()
        ends = connection.execute(_ENDS, {"job_id": job_id, "series": name}).one()
        kept = self._kept.pop(key, None)
        if kept is None or kept.first != ends.first or now_s - kept.made_s > STANDS_S:
            kept = _Kept(ends.first, now_s)
        if ends.first is not None:
            while ends.last // kept.width - ends.first // kept.width >= points:
                kept.widen()
            begin = ends.first if not kept.buckets else kept.drop_last()
            given = {"job_id": job_id, "series": name, "width": kept.width, "begin": begin}
            kept.buckets += [_Bucket(*row) for row in connection.execute(_BUCKETS, given)]
        self._kept[key] = kept
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return kept


def _names(connection: Connection, job_id: str) -> Iterator[str]:
    """Yield the names of a job's metrics: one look into the index a name, not one a point."""
    name: str | None = ""
    while True:
        name = connection.scalar(_NEXT_NAME, {"job_id": job_id, "series": name})
        if name is None:
            return
        yield name
