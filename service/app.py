"""The job status service over HTTP: reads records, writes nothing, needs no torch."""

import logging
from datetime import datetime
from ipaddress import ip_address
from typing import Annotated

import uvicorn
from fastapi import FastAPI, HTTPException, Query
from pydantic import BaseModel

from service.database import default_url
from service.jobs import Observed, Periods, State, Status
from service.problem import answer_problems, problem_responses
from service.store import JobStore, open_store

_log = logging.getLogger(__name__)


class ProgressAnswer(BaseModel):
    """How far a job is, counted in `unit`."""

    done: int
    total: int | None
    unit: str
    resumed: int


class JobRow(BaseModel):
    """A job in a list."""

    id: str
    kind: str
    state: State
    status: Status
    reason: str | None
    progress: ProgressAnswer
    rate: float | None
    eta_s: float | None
    metrics: dict[str, float | None]
    heartbeat_age_s: float
    created: datetime
    started: datetime | None
    ended: datetime | None


class JobAnswer(JobRow):
    """A job in full."""

    host: str
    pid: int
    heartbeat: datetime
    progress_at: datetime | None
    config: dict[str, object]


class JobsAnswer(BaseModel):
    """A page of jobs, newest first; `next_cursor` is null on the last one."""

    jobs: list[JobRow]
    next_cursor: str | None


class HealthAnswer(BaseModel):
    """That the service lives, or can read its database."""

    status: str


def create_app(url: str | None = None, *, periods: Periods | None = None) -> FastAPI:
    """Return the service that reads the records at `url` (RETORT_DB or the default file if None).

    Raises:
        StoreRefusedError: the URL names neither SQLite nor PostgreSQL, or a driver is missing.
    """
    store = open_store(default_url() if url is None else url)
    # no docs pages: they load scripts from elsewhere
    app = FastAPI(title="Retort", docs_url=None, redoc_url=None)
    answer_problems(app)
    _add_job_routes(app, store, Periods() if periods is None else periods)
    _add_health_routes(app, store)
    return app


def serve(host: str = "127.0.0.1", port: int = 8000, url: str | None = None) -> None:
    """Serve the records at `url` until SIGINT or SIGTERM; port 0 takes a free one.

    Raises:
        StoreRefusedError: as `create_app`.
        SystemExit: the address cannot be listened on.
    """
    app = create_app(url)
    if not _is_loopback(host):
        _log.warning("listening on %s: whoever reaches it may read every job's record", host)
    uvicorn.run(app, host=host, port=port, access_log=False, server_header=False)


def _add_job_routes(app: FastAPI, store: JobStore, periods: Periods) -> None:
    @app.get("/api/v1/jobs", responses=problem_responses(422, 503))
    def list_jobs(
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Annotated[str | None, Query(pattern="^[0-9a-f]{32}$")] = None,
        state: State | None = None,
        kind: Annotated[str | None, Query(max_length=64, pattern="^[a-z0-9-]*$")] = None,
    ) -> JobsAnswer:
        page = store.list(limit=limit, cursor=cursor, state=state, kind=kind)
        rows = [JobRow.model_validate(_answer(job, periods)) for job in page.jobs]
        return JobsAnswer(jobs=rows, next_cursor=page.next_cursor)

    @app.get("/api/v1/jobs/{job_id}", responses=problem_responses(404, 422, 503))
    def get_job(job_id: str) -> JobAnswer:
        job = store.get(job_id)
        if job is None:
            raise HTTPException(404, "there is no such job; GET /api/v1/jobs lists them")
        return JobAnswer.model_validate(_answer(job, periods))


def _add_health_routes(app: FastAPI, store: JobStore) -> None:
    @app.get("/livez")
    async def livez() -> HealthAnswer:
        return HealthAnswer(status="alive")

    @app.get("/readyz", responses=problem_responses(503))
    def readyz() -> HealthAnswer:
        store.check()
        return HealthAnswer(status="ready")


def _answer(job: Observed, periods: Periods) -> dict[str, object]:
    """Return the fields of a `JobAnswer`, those of a `JobRow` among them."""
    record = job.record
    status = job.status(periods)
    moves = status in (Status.RUNNING, Status.CANCELLING)
    return {
        "id": record.id,
        "kind": record.kind,
        "state": record.state,
        "status": status,
        "reason": record.reason,
        "progress": {
            "done": record.done,
            "total": record.total,
            "unit": record.unit,
            "resumed": record.resumed,
        },
        "rate": record.rate,
        "eta_s": record.eta_s if moves else None,  # a job that does not beat will not arrive
        "metrics": record.metrics,
        "heartbeat_age_s": job.heartbeat_age_s,
        "created": record.created,
        "started": record.started,
        "ended": record.ended,
        "host": record.host,
        "pid": record.pid,
        "heartbeat": record.heartbeat,
        "progress_at": record.progress_at,
        "config": record.config,
    }


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
