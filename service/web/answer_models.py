"""What the service answers, as HTTP and `cli.py jobs` both say it: one model a noun."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from service.jobs import Observed, Periods, State, Status
from service.records.events import EventKind, Events
from service.records.rank_rows import RankRecord
from service.records.reader import Page
from service.records.series import Series, SeriesName

ALIVE_POLL_S, STALE_POLL_S = 2.0, 10.0
"""After how long asking again may tell something new."""


class Answer(BaseModel):
    """Base of all answers: fields are declared, absent ones are null."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


class ProgressAnswer(Answer):
    """How far a job is, counted in `unit`."""

    done: int
    total: int | None
    unit: str
    resumed: int


class JobRow(Answer):
    """A job in a list."""

    id: str
    kind: str
    state: State
    status: Status
    reason: str | None
    attempt: int
    resumed_from: str | None
    progress: ProgressAnswer
    rate: float | None
    eta_s: float | None
    bytes: int | None
    metrics: dict[str, float | None]
    heartbeat_age_s: float
    progress_age_s: float | None
    created: datetime
    started: datetime | None
    ended: datetime | None


class ArtifactAnswer(Answer):
    """A file that a job left behind, by the name under which Retort knows it."""

    name: str
    size: int
    sha256: str | None


class JobAnswer(JobRow):
    """A job in full."""

    host: str
    pid: int
    heartbeat: datetime
    progress_at: datetime | None
    config: dict[str, object]
    environment: dict[str, str | bool | None]
    artifacts: list[ArtifactAnswer]
    ranks: int
    version: int
    poll_after_s: float | None


class JobsAnswer(Answer):
    """A page of jobs, newest first; `next_cursor` is null on the last one.

    `partial`: only those that changed since the ETag that was asked from; the others stand.

    `database` names where they are recorded, a file by its last three parts.
    """

    jobs: list[JobRow]
    next_cursor: str | None
    database: str
    partial: bool = False


class RankAnswer(Answer):
    """One process of a job; `done` counts what it did itself since it started."""

    rank: int
    host: str
    pid: int
    state: State
    status: Status
    done: int
    heartbeat_age_s: float
    progress_age_s: float | None


class RanksAnswer(Answer):
    """The processes of a job by rank."""

    ranks: list[RankAnswer]


class SeriesNameAnswer(Answer):
    """A metric that has points."""

    name: str
    points: int
    last_step: int
    last_value: float | None


class SeriesAnswer(Answer):
    """A metric over steps; min, max and last of each bucket, equal where nothing is left out."""

    name: str
    steps: list[int]
    times: list[float]
    min: list[float | None]
    max: list[float | None]
    last: list[float | None]
    raw_points: int


class MetricsAnswer(Answer):
    """Without a name asked for, the names; with names, their series."""

    names: list[SeriesNameAnswer] | None = None
    series: list[SeriesAnswer] | None = None


class EventAnswer(Answer):
    """Something that happened to a job."""

    id: int
    time: datetime
    kind: EventKind
    text: str


class EventsAnswer(Answer):
    """Events, oldest first; `last_id` is the `after` of the next question.

    `more`: there are later ones, or where the newest were asked for, earlier ones.
    """

    events: list[EventAnswer]
    last_id: int
    more: bool


class LogAnswer(Answer):
    """The last lines of a job's log, oldest first, and the traceback of its failure."""

    lines: list[str]
    traceback: str | None


class HealthAnswer(Answer):
    """That the service lives, or can read its database."""

    status: str


def job_row(job: Observed, periods: Periods) -> JobRow:
    """Return the row of a job."""
    return JobRow(**_row(job, periods))


def job_answer(job: Observed, periods: Periods) -> JobAnswer:
    """Return a job in full."""
    record, row = job.record, _row(job, periods)
    return JobAnswer(
        **row,
        host=record.host,
        pid=record.pid,
        heartbeat=record.heartbeat,
        progress_at=record.progress_at,
        config=record.config,
        environment=record.environment,
        artifacts=record.artifacts,
        ranks=record.ranks,
        version=record.version,
        poll_after_s=poll_after_s(job.status(periods)),
    )


def jobs_answer(page: Page, periods: Periods, next_cursor: str | None, database: str) -> JobsAnswer:
    """Return a page of jobs; `database` is the full name of where they are recorded."""
    shown = database if "://" in database else "/".join(Path(database).parts[-3:])
    rows = [job_row(job, periods) for job in page.jobs]
    return JobsAnswer(jobs=rows, next_cursor=next_cursor, database=shown)


def ranks_answer(ranks: Sequence[RankRecord], periods: Periods) -> RanksAnswer:
    """Return the processes of a job."""
    return RanksAnswer(
        ranks=[
            RankAnswer(
                rank=rank.rank,
                host=rank.host,
                pid=rank.pid,
                state=rank.state,
                status=rank.status(periods),
                done=rank.done,
                heartbeat_age_s=rank.heartbeat_age_s,
                progress_age_s=rank.progress_age_s,
            )
            for rank in ranks
        ]
    )


def names_answer(names: Sequence[SeriesName]) -> MetricsAnswer:
    """Return which metrics a job has."""
    return MetricsAnswer(names=[SeriesNameAnswer.model_validate(one) for one in names])


def series_answer(series: Sequence[Series]) -> MetricsAnswer:
    """Return metrics over steps."""
    return MetricsAnswer(series=[SeriesAnswer.model_validate(one) for one in series])


def events_answer(found: Events, after: int) -> EventsAnswer:
    """Return events that came after the id `after`."""
    answers = [EventAnswer.model_validate(one) for one in found.events]
    last_id = answers[-1].id if answers else after
    return EventsAnswer(events=answers, last_id=last_id, more=found.more)


def poll_after_s(status: Status) -> float | None:
    """Return after how many seconds asking again may tell something new; None when it cannot."""
    if status in (Status.STALE, Status.CRASHED):
        return STALE_POLL_S
    return None if State(status.value).is_final else ALIVE_POLL_S


def _row(job: Observed, periods: Periods) -> dict[str, object]:
    record = job.record
    status = job.status(periods)
    moves = status in (Status.RUNNING, Status.CANCELLING)
    return {
        "id": record.id,
        "kind": record.kind,
        "state": record.state,
        "status": status,
        "reason": record.reason,
        "attempt": record.attempt,
        "resumed_from": record.resumed_from,
        "progress": {
            "done": record.done,
            "total": record.total,
            "unit": record.unit,
            "resumed": record.resumed,
        },
        "rate": record.rate,
        "eta_s": record.eta_s if moves else None,  # a job that does not beat will not arrive
        "bytes": record.bytes,
        "metrics": record.metrics,
        "heartbeat_age_s": job.heartbeat_age_s,
        "progress_age_s": job.progress_age_s,
        "created": record.created,
        "started": record.started,
        "ended": record.ended,
    }
