"""Metrics over a job's steps: stored point by point, read whole or as buckets of min and max."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Connection,
    Double,
    and_,
    bindparam,
    func,
    select,
    type_coerce,
)

from service.records.schema import database_now, insert_or_not, metrics_table

_m = metrics_table.c


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


def series_names(connection: Connection, job_id: str) -> tuple[SeriesName, ...]:
    """Return the names of the metrics that a job has points of, in order."""
    last = (
        select(_m.name, func.count().label("points"), func.max(_m.step).label("step"))
        .where(_m.job == job_id)
        .group_by(_m.name)
        .subquery()
    )
    query = (
        select(last.c.name, last.c.points, last.c.step, _m.value)
        .join(metrics_table, and_(_m.job == job_id, _m.name == last.c.name, _m.step == last.c.step))
        .order_by(last.c.name)
    )
    return tuple(SeriesName(*row) for row in connection.execute(query))


def read_series(connection: Connection, job_id: str, name: str, points: int) -> Series:
    """Return one metric in at most `points` entries; empty where the job has none of that name."""
    of_this = and_(_m.job == job_id, _m.name == name)
    count, first, last = connection.execute(
        select(func.count(), func.min(_m.step), func.max(_m.step)).where(of_this)
    ).one()
    if count <= points:
        query = select(_m.step, _m.time, _m.value).where(of_this).order_by(_m.step)
        rows = connection.execute(query).all()
        steps, times, values = zip(*rows, strict=True) if rows else ((), (), ())
        return Series(name, steps, times, values, values, values, count)
    width = -(-(last - first + 1) // points)
    bucket = (_m.step - first) // width
    buckets = (
        select(
            func.min(_m.value).label("low"),
            func.max(_m.value).label("high"),
            func.max(_m.step).label("step"),
        )
        .where(of_this)
        .group_by(bucket)
        .subquery()
    )
    query = (
        select(_m.step, _m.time, buckets.c.low, buckets.c.high, _m.value)
        .join(metrics_table, and_(of_this, _m.step == buckets.c.step))
        .order_by(_m.step)
    )
    columns = zip(*connection.execute(query), strict=True)
    steps, times, low, high, values = columns
    return Series(name, steps, times, low, high, values, count)
