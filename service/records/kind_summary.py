"""All jobs of a database in a few figures by kind, counted by the database."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Double, Float, case, cast, func, literal, select, type_coerce

from service.jobs import Periods, Status
from service.records.schema import database_now, jobs_table
from service.records.status_sql import heartbeat_age_s, status_column

KINDS = ("cache-teacher", "train-student")
"""The kinds that Retort records; any other is summed up as `other`."""

_WORDS = frozenset(Status)
_j = jobs_table.c


@dataclass(frozen=True, slots=True)
class KindSummary:
    """The jobs of one kind. The figures of live jobs are None where none lives."""

    kind: str
    jobs: Mapping[Status, int] = field(default_factory=dict)
    progress_ratio: float | None = None
    """The least of the live jobs'."""
    heartbeat_age_s: float | None = None
    """The greatest of the jobs that live or are stale."""
    progress_age_s: float | None = None
    """The greatest of the live jobs'."""
    images: int = 0
    bytes: int = 0


def summarize(connection: Connection, periods: Periods) -> tuple[KindSummary, ...]:
    """Return one summary a kind that the database holds."""
    now = type_coerce(database_now(), Double)
    age = heartbeat_age_s()
    kind = case((_j.kind.in_(KINDS), _j.kind), else_=literal("other"))
    ratio = cast(_j.done, Float) / func.nullif(_j.total, 0)
    rows = select(
        kind.label("kind"),
        status_column(periods).label("status"),
        age.label("age"),
        ratio.label("ratio"),
        (now - type_coerce(func.coalesce(_j.progress_at, _j.started), Double)).label("stood"),
        ((_j.done - _j.resumed) * _j.images_per_unit).label("images"),
        _j.bytes.label("bytes"),
    ).subquery()
    query = select(
        rows.c.kind,
        rows.c.status,
        func.count().label("jobs"),
        func.max(rows.c.age).label("age"),
        func.min(rows.c.ratio).label("ratio"),
        func.max(rows.c.stood).label("stood"),
        func.coalesce(func.sum(rows.c.images), 0).label("images"),
        func.coalesce(func.sum(rows.c.bytes), 0).label("bytes"),
    ).group_by(rows.c.kind, rows.c.status)
    found: dict[str, KindSummary] = {}
    for row in connection.execute(query):
        before = found.get(row.kind, KindSummary(row.kind))
        # a damaged row's state is no word: it reads as failed, as in a list
        word = Status(row.status) if row.status in _WORDS else Status.FAILED
        found[row.kind] = _with(before, word, row._asdict())
    return tuple(found[name] for name in sorted(found))


def _with(before: KindSummary, status: Status, row: Mapping[str, Any]) -> KindSummary:
    lives = status in (Status.RUNNING, Status.CANCELLING)
    beats = lives or status is Status.STALE
    return KindSummary(
        before.kind,
        {**before.jobs, status: before.jobs.get(status, 0) + int(row["jobs"] or 0)},
        _extreme(min, before.progress_ratio, row["ratio"] if lives else None),
        _extreme(max, before.heartbeat_age_s, row["age"] if beats else None),
        _extreme(max, before.progress_age_s, row["stood"] if lives else None),
        before.images + int(row["images"] or 0),
        before.bytes + int(row["bytes"] or 0),
    )


def _extreme(choose: Callable[..., float], one: float | None, other: float | None) -> float | None:
    known = [value for value in (one, other) if value is not None]
    return choose(known) if known else None
