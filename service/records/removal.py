"""A job's record taken out of the database, with all that belongs to it."""

from sqlalchemy import Connection, Double, delete, or_, select, type_coerce, update

from service.jobs import FINAL_STATES
from service.records.schema import (
    database_now,
    events_table,
    jobs_table,
    logs_table,
    metrics_table,
    ranks_table,
)

_j = jobs_table.c


def remove_job(connection: Connection, job_id: str, crashed_s: float) -> bool:
    """Remove a job that has ended, or has not beaten for `crashed_s` seconds; whether it was so.

    A job that resumed it is told to have resumed what it resumed.
    """
    age = type_coerce(database_now(), Double) - type_coerce(_j.heartbeat, Double)
    gone = or_(_j.state.in_(FINAL_STATES), age >= crashed_s)
    earlier = connection.scalar(select(_j.resumed_from).where(_j.id == job_id))
    if connection.execute(delete(jobs_table).where(_j.id == job_id, gone)).rowcount == 0:
        return False
    for table in (ranks_table, metrics_table, events_table, logs_table):
        connection.execute(delete(table).where(table.c.job == job_id))
    later = update(jobs_table).where(_j.resumed_from == job_id)
    connection.execute(later.values(resumed_from=earlier, version=_j.version + 1))
    return True
