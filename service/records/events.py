"""What happened to a job: states, warnings, checkpoints as they were stored; the end of its log."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Double, bindparam, insert, select, type_coerce

from service.records.connections.database import schema_of
from service.records.schema import (
    Instant,
    database_now,
    events_table,
    insert_or_not,
    logs_table,
)

_e = events_table.c
_l = logs_table.c


class EventKind(StrEnum):
    """What an event tells of."""

    STATE = "state"
    WARNING = "warning"
    CHECKPOINT = "checkpoint"


_KINDS = frozenset(EventKind)


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it is stored."""

    id: int
    time: datetime
    kind: EventKind
    text: str


@dataclass(frozen=True, slots=True)
class Events:
    """Events, oldest first, and whether there are `more`: later, or earlier than the newest."""

    events: tuple[Event, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Said:
    """An event that a job's process tells of itself; `number` is the process's own count."""

    number: int
    kind: EventKind
    text: str
    age_s: float = 0.0
    """How long ago it happened."""


def add_state(connection: Connection, job_id: str, text: str) -> None:
    """Store that a job's state changed, in the transaction that changes it."""
    connection.execute(
        insert(events_table).values(
            job=job_id, time=database_now(), kind=EventKind.STATE.value, text=text
        )
    )


def add_said(connection: Connection, job_id: str, rank: int, said: Sequence[Said]) -> None:
    """Store what a rank said; what it said before is left alone.

    The caller's transaction has written the job's own row before: its lock makes the events of one
    job be stored in the order of their ids, so that a reader who asks for what came after the last
    id that it saw misses none.
    """
    if not said:
        return
    happened = type_coerce(
        type_coerce(database_now(), Double) - bindparam("age_s", type_=Double), Instant
    )
    names = ("job", "rank", "number", "kind", "text")
    values: dict[str, Any] = {name: bindparam(f"p_{name}") for name in names}
    new = insert_or_not(connection, events_table).values(**values, time=happened)
    connection.execute(
        new.on_conflict_do_nothing(),
        [
            {
                "p_job": job_id,
                "p_rank": rank,
                "p_number": one.number,
                "p_kind": one.kind.value,
                "p_text": one.text,
                "age_s": one.age_s,
            }
            for one in said
        ],
    )


def read_events(
    connection: Connection, job_id: str, after: int, limit: int, *, newest: bool
) -> Events:
    """Return up to `limit` events of a job whose id is above `after`, oldest first.

    The first of them, or the `newest` where there are more.
    """
    query = select(_e.id, _e.time, _e.kind, _e.text).where(_e.job == job_id, _e.id > after)
    ordered = query.order_by(_e.id.desc() if newest else _e.id).limit(limit + 1)
    found = [
        Event(row.id, row.time, EventKind(row.kind), row.text)
        for row in connection.execute(ordered)
        if row.kind in _KINDS and isinstance(row.time, datetime)  # one damaged row hides no other
    ]
    kept = found[:limit]
    return Events(tuple(reversed(kept) if newest else kept), more=len(found) > limit)


@dataclass(frozen=True, slots=True)
class Log:
    """The last lines of a job's log, oldest first, and why it failed."""

    lines: tuple[str, ...] = ()
    traceback: str | None = None


def write_log(connection: Connection, job_id: str, log: Log) -> None:
    """Store a job's log in the place of what was stored of it before."""
    new = insert_or_not(connection, logs_table).values(
        job=job_id, traceback=log.traceback, lines="\n".join(log.lines)
    )
    kept = {name: new.excluded[name] for name in ("traceback", "lines")}
    connection.execute(new.on_conflict_do_update(index_elements=["job"], set_=kept))


def read_log(connection: Connection, job_id: str) -> Log:
    """Return a job's log, an empty one where none is stored."""
    if schema_of(connection) < 3:
        return Log()
    query = select(_l.lines, _l.traceback).where(_l.job == job_id)
    row = connection.execute(query).one_or_none()
    return Log() if row is None else Log(tuple(row.lines.splitlines()), row.traceback)
