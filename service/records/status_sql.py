"""What a job reads as, worked out by the database: `service.jobs.Periods.status` in SQL."""

from sqlalchemy import ColumnElement, Double, case, literal, type_coerce

from service.jobs import FINAL_STATES, Periods, Status
from service.records.schema import database_now, jobs_table

_j = jobs_table.c


def heartbeat_age_s() -> ColumnElement[float]:
    """Seconds since a job's last heartbeat, by the database's clock."""
    return type_coerce(database_now(), Double) - type_coerce(_j.heartbeat, Double)


def status_column(periods: Periods) -> ColumnElement[str]:
    """A job's status as a word: its stored state, or `stale` or `crashed`."""
    age, stored = heartbeat_age_s(), type_coerce(_j.state, _j.kind.type)
    return case(
        (_j.state.in_(FINAL_STATES), stored),
        (age < periods.stale_s, stored),
        (age >= periods.crashed_s, literal(Status.CRASHED.value)),
        else_=literal(Status.STALE.value),
    )
