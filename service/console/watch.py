"""Follows one job to its end, and turns the end into an exit code."""

import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from service.console.job_source import JobSource, JobSourceError, Json
from service.console.job_text import state_words
from service.console.terminal import ProgressDisplay
from service.jobs import Periods
from service.records.connections.engines import DatabaseError

EXIT_CODES = {"succeeded": 0, "failed": 10, "crashed": 11, "cancelled": 12}
DETACHED = 130
_CRASHED_AFTER_S = Periods().crashed_s
"""A job reads as crashed from this age of its heartbeat on, so it has been for the rest of it."""
_POLL_S = 2.0
_AWAY_S = 5.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A job's progress as the display takes it."""

    done: int
    total: int
    unit: str
    resumed: int
    metrics: Mapping[str, float]


def watch(source: JobSource, job_id: str, *, crashed_s: float, as_json: bool) -> int:
    """Follow a job until it ends or has read as crashed for `crashed_s`; return the exit code.

    A service that stops answering meanwhile is asked again until it does.

    Raises:
        JobSourceError, DatabaseError: the first question is not answered.
    """
    job = source.job(job_id)
    try:
        with ProgressDisplay(job["kind"]) as display:
            said = ""
            while True:
                said = _tell(job, display, said, as_json=as_json)
                code = _exit_code(job, crashed_s)
                if code is not None:
                    return code
                time.sleep(job["poll_after_s"] or _POLL_S)
                job = _ask_until_answered(source, job_id)
    except KeyboardInterrupt:
        _log(f"detached; job {job_id} goes on")
        return DETACHED


def _tell(job: Json, display: ProgressDisplay, said: str, *, as_json: bool) -> str:
    """Say where the job is, and its status where that is news; return the status."""
    status = str(job["status"])
    if as_json:
        print(json.dumps(job), flush=True)  # noqa: T201 - what the user asked for
        return status
    progress = job["progress"]
    if progress["total"] is not None and status in ("running", "cancelling"):
        display.show_at(_seen(job), job["rate"], job["eta_s"])
    if status != said:
        _log(f"{job['kind']} {job['id']} {state_words(job)}")
    return status


def _exit_code(job: Json, crashed_s: float) -> int | None:
    """Return how the job ended as an exit code; None while it may go on."""
    status = str(job["status"])
    if status == "crashed" and job["heartbeat_age_s"] - _CRASHED_AFTER_S < crashed_s:
        return None
    return EXIT_CODES.get(status)


def _ask_until_answered(source: JobSource, job_id: str) -> Json:
    """Ask; a service or database that is away for a while is waited for."""
    failed = False
    while True:
        try:
            return source.job(job_id)
        except (JobSourceError, DatabaseError) as error:
            if not failed:
                _log(f"{error}: asking again every {_AWAY_S:.0f} s; the job is not concerned")
            failed = True
            time.sleep(_AWAY_S)


def _seen(job: Json) -> Seen:
    progress = job["progress"]
    # one that is not finite must not leave its last finite value on the line
    metrics = {name: math.nan if value is None else value for name, value in job["metrics"].items()}
    return Seen(progress["done"], progress["total"], progress["unit"], progress["resumed"], metrics)


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - said to the one who watches
