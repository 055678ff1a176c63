"""The processes that work on a job, each with a row of its own, written by itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Double, case, func, select, type_coerce

from service.jobs import FINAL_STATES, Periods, State, Status, seconds_since
from service.records.schema import DAMAGED, database_now, insert_or_not, jobs_table, ranks_table

_r = ranks_table.c
_j = jobs_table.c

LAUNCH_S = 30.0
"""Within so many seconds all processes of a job begin."""


@dataclass(frozen=True, slots=True)
class RankRecord:
    """One process of a job as it is stored, and the instant at which it was read."""

    rank: int
    host: str
    pid: int
    state: State
    done: int
    """Units that this process did itself, since it started."""
    heartbeat: datetime
    progress_at: datetime | None
    now: datetime

    @property
    def heartbeat_age_s(self) -> float:
        """Seconds since it last said that it lives."""
        return max(0.0, (self.now - self.heartbeat).total_seconds())

    @property
    def progress_age_s(self) -> float | None:
        """Seconds since its `done` last moved; None before it first did."""
        return seconds_since(self.progress_at, self.now)

    def status(self, periods: Periods) -> Status:
        """Return the stored state, or `stale` or `crashed` when the heartbeat is too old."""
        return periods.status(self.state, self.heartbeat_age_s)


@dataclass(frozen=True, slots=True)
class Rank:
    """What a process says of itself when it beats."""

    rank: int
    host: str
    pid: int
    state: State = State.RUNNING
    done: int = 0


def job_of(
    connection: Connection,
    target: str,
    attempt: int,
    rank: Rank,
    *,
    known: str | None,
    age_s: float,
) -> str | None:
    """Return the job that a process other than the first works on: the newest of its target.

    A job that has ended is left for the one `known` before. The end of a process that knows none
    belongs to one that has ended already, if that is not older than the process (`age_s`) by more
    than a launch takes. None where there is no such job.
    """
    newest = select(func.max(_j.id)).where(_j.target == target, _j.attempt == attempt)
    found: str | None = connection.scalar(newest.where(_j.state.not_in(FINAL_STATES))) or known
    if found is None and rank.state.is_final:
        begun = type_coerce(database_now(), Double) - (age_s + LAUNCH_S)
        found = connection.scalar(newest.where(type_coerce(_j.created, Double) >= begun))
    return found


def beat(connection: Connection, job_id: str, rank: Rank) -> None:
    """Write a process's row, and stamp it by the database's clock."""
    first: Mapping[str, Any] = {
        "job": job_id,
        "rank": rank.rank,
        "host": rank.host,
        "pid": rank.pid,
        "state": rank.state,
        "done": rank.done,
        "heartbeat": database_now(),
    }
    new = insert_or_not(connection, ranks_table).values(**first)
    again = {name: new.excluded[name] for name in ("host", "pid", "state", "done", "heartbeat")}
    moved = case((_r.done != new.excluded.done, database_now()), else_=_r.progress_at)
    connection.execute(
        new.on_conflict_do_update(
            index_elements=["job", "rank"], set_={**again, "progress_at": moved}
        )
    )


def read_ranks(connection: Connection, job_id: str) -> tuple[RankRecord, ...]:
    """Return the processes of a job by rank."""
    query = (
        select(
            _r.rank,
            _r.host,
            _r.pid,
            _r.state,
            _r.done,
            _r.heartbeat,
            _r.progress_at,
            database_now().label("now"),
        )
        .where(_r.job == job_id)
        .order_by(_r.rank)
    )
    ranks = (RankRecord(*row) for row in connection.execute(query))
    # one damaged row hides no other
    return tuple(
        rank
        for rank in ranks
        if isinstance(rank.state, State) and DAMAGED not in (rank.heartbeat, rank.progress_at)
    )
