"""Old jobs found, and jobs written out whole: what `cli.py jobs prune` and `export` do."""

import re
from collections.abc import Iterator, Sequence

from service.console.job_source import JobSource, JobSourceError, Json

_UNITS_S = {"d": 86_400.0, "h": 3_600.0, "m": 60.0}


def age_s(text: str) -> float:
    """Return the seconds that an age such as 30d, 12h or 90m stands for.

    Raises:
        JobSourceError: it is none.
    """
    found = re.fullmatch(r"(\d{1,6})([dhm])", text.strip())
    if found is None:
        raise JobSourceError(f"got --older-than {text}, expected days, hours or minutes: 30d, 12h")
    return int(found[1]) * _UNITS_S[found[2]]


def all_jobs(source: JobSource) -> Iterator[Json]:
    """Yield the rows of all jobs, newest first."""
    cursor = None
    while True:
        page = source.jobs(limit=200, cursor=cursor)
        yield from page["jobs"]
        cursor = page["next_cursor"]
        if cursor is None:
            return


def old_jobs(source: JobSource, older_than_s: float, states: Sequence[str]) -> list[Json]:
    """Return the jobs that read as one of `states`, and said nothing for so long."""
    return [
        row
        for row in all_jobs(source)
        if row["status"] in states and row["heartbeat_age_s"] > older_than_s
    ]


def whole_job(source: JobSource, job_id: str) -> Json:
    """Return all that is known of a job."""
    return {
        "job": source.job(job_id),
        "ranks": source.ranks(job_id),
        "events": source.events(job_id)["events"],
        "log": source.log(job_id),
        "metrics": source.metrics(job_id),
    }
