"""The endpoints of jobs: each reads records and says them as its answer model does."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Header, HTTPException, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, StringConstraints

from service.jobs import IllegalTransitionError, Periods, State, Status
from service.records.connections.engines import DatabaseBusyError
from service.records.job_store import JobLivesError, JobStore
from service.web.answer_models import (
    EventsAnswer,
    JobAnswer,
    JobRow,
    JobsAnswer,
    LogAnswer,
    MetricsAnswer,
    RanksAnswer,
    events_answer,
    job_answer,
    job_row,
    jobs_answer,
    names_answer,
    ranks_answer,
    series_answer,
)
from service.web.conditional import Told, cursor_after, etag_of, is_known, job_before
from service.web.problem import problem_responses

T = TypeVar("T")

ANY_REQUEST = (400, 401, 413, 431, 500, 503)
"""The errors that any request of records may be answered with."""
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "As in your ETag"}}
NO_SUCH_JOB = "there is no such job; GET /api/v1/jobs lists them"

JobId = Annotated[str, Path(description="32 hexadecimal digits")]
Known = Annotated[str | None, Header(alias="If-None-Match", max_length=8192)]
MetricName = Annotated[
    # no name holds NUL, which PostgreSQL refuses
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00]+$")
]
Id = Annotated[int, Query(ge=0, le=2**63 - 1)]
Limit = Annotated[int, Query(ge=1, le=200)]
Newest = Annotated[bool, Query(description="The newest, where there are more than `limit`")]


def job_routes(store: JobStore, periods: Periods) -> APIRouter:
    """Return the endpoints under /api/v1."""
    router = APIRouter(prefix="/api/v1", tags=["jobs"])
    _add_jobs(router, store, periods)
    _add_parts(router, store, periods)
    _add_log(router, store)
    _add_cancel(router, store, periods)
    _add_removal(router, store, periods)
    return router


def _add_jobs(router: APIRouter, store: JobStore, periods: Periods) -> None:
    told = Told()

    @router.get(
        "/jobs",
        response_model=JobsAnswer,
        responses=NOT_MODIFIED | problem_responses(422, *ANY_REQUEST),
    )
    async def list_jobs(
        request: Request,
        limit: Limit = 50,
        cursor: Annotated[str | None, Query(max_length=64)] = None,
        state: State | None = None,
        status: Status | None = None,
        kind: Annotated[str | None, Query(max_length=64, pattern="^[a-z0-9-]*$")] = None,
        beginning: Annotated[str | None, Query(alias="id", pattern="^[0-9a-f]{1,32}$")] = None,
        since: Annotated[str | None, Query(max_length=64)] = None,
        if_none_match: Known = None,
    ) -> Response:
        """Jobs, newest first; `Link: rel="next"` and `next_cursor` lead to older ones.

        With the ETag of the answer before as `since` only those are said that have changed.
        """
        before = None if cursor is None else job_before(cursor)
        if cursor is not None and before is None:
            raise HTTPException(
                422, f"query.cursor: got {cursor!r}, expected an earlier next_cursor"
            )
        asked: dict[str, Any] = {"state": state, "status": status, "kind": kind}
        asked |= {"beginning": beginning, "periods": periods}
        page = await _read(store, lambda: store.list(limit=limit, cursor=before, **asked))
        headers = {"etag": etag_of(page.jobs, periods, page.next_cursor)}
        following = None
        if page.next_cursor is not None:
            following = cursor_after(page.next_cursor)
            url = request.url.include_query_params(cursor=following)
            headers["link"] = f'<{url.path}?{url.query}>; rel="next"'
        if is_known(if_none_match, headers["etag"]):
            return Response(status_code=304, headers=headers)
        changed = told.changed(page.jobs, periods, headers["etag"], since)
        if changed is not None:
            page = replace(page, jobs=tuple(changed))
        answer = jobs_answer(page, periods, following, store.database_name)
        return _json(answer.model_copy(update={"partial": changed is not None}), headers)

    @router.get(
        "/jobs/{job_id}",
        response_model=JobAnswer,
        responses=NOT_MODIFIED | problem_responses(404, 422, *ANY_REQUEST),
    )
    async def get_job(job_id: JobId, if_none_match: Known = None) -> Response:
        """One job in full."""
        job = _found(await _read(store, lambda: store.get(job_id)))
        headers = {"etag": etag_of((job,), periods)}
        if is_known(if_none_match, headers["etag"]):
            return Response(status_code=304, headers=headers)
        return _json(job_answer(job, periods), headers)


def _add_parts(router: APIRouter, store: JobStore, periods: Periods) -> None:
    responses = problem_responses(404, 422, *ANY_REQUEST)

    @router.get("/jobs/{job_id}/ranks", response_model=RanksAnswer, responses=responses)
    async def get_ranks(job_id: JobId) -> Response:
        """The processes of a job."""
        found = _found(await _read(store, lambda: store.ranks(job_id)))
        return _json(ranks_answer(found, periods))

    @router.get("/jobs/{job_id}/metrics", response_model=MetricsAnswer, responses=responses)
    def get_metrics(
        job_id: JobId,
        name: Annotated[list[MetricName] | None, Query(max_length=8)] = None,
        points: Annotated[int, Query(ge=10, le=2000)] = 500,
    ) -> Response:
        """The names of a job's metrics, or up to eight of them over its steps."""
        if not name:
            return _json(names_answer(_found(store.metric_names(job_id))))
        return _json(series_answer(_found(store.metrics(job_id, name, points))))

    @router.get("/jobs/{job_id}/events", response_model=EventsAnswer, responses=responses)
    async def get_events(
        job_id: JobId, after: Id = 0, limit: Limit = 200, *, newest: Newest = False
    ) -> Response:
        """What happened to a job since the event `after`, oldest first; all, or the newest."""
        found = _found(
            await _read(store, lambda: store.events(job_id, after, limit, newest=newest))
        )
        return _json(events_answer(found, after))


def _add_log(router: APIRouter, store: JobStore) -> None:
    responses = problem_responses(404, 422, *ANY_REQUEST)

    @router.get("/jobs/{job_id}/log", response_model=LogAnswer, responses=responses)
    async def get_log(job_id: JobId) -> Response:
        """The last 200 lines of a job's log, and the traceback of its failure."""
        found = _found(await _read(store, lambda: store.log(job_id)))
        return _json(LogAnswer.model_validate(found))


def _add_cancel(router: APIRouter, store: JobStore, periods: Periods) -> None:
    @router.post(
        "/jobs/{job_id}/cancel",
        status_code=202,
        response_model=JobRow,
        responses=problem_responses(403, 404, 409, 422, *ANY_REQUEST),
    )
    def cancel_job(job_id: JobId) -> Response:
        """Ask a job to stop after its step or block, and to save; asking twice is asking once."""
        try:
            job = _found(store.request_cancel(job_id, periods))
        except IllegalTransitionError as error:
            raise HTTPException(409, f"the job has ended: it is {error.current}") from error
        return _json(job_row(job, periods), status=202)


def _add_removal(router: APIRouter, store: JobStore, periods: Periods) -> None:
    @router.delete(
        "/jobs/{job_id}",
        status_code=204,
        responses=problem_responses(403, 404, 409, 422, *ANY_REQUEST),
    )
    def remove_job(job_id: JobId) -> Response:
        """Remove the record of a job that has ended or crashed; its files are left alone."""
        try:
            _found(store.remove(job_id, periods) or None)
        except JobLivesError as error:
            raise HTTPException(409, str(error)) from error
        return Response(status_code=204)


async def _read(store: JobStore, read: Callable[[], T]) -> T:
    """Read in the event loop what a local file answers in microseconds, else in a thread.

    Going to a thread and back costs several times what reading a record from SQLite does.
    """
    if store.is_local:
        with suppress(DatabaseBusyError):  # whoever has to wait does so in a thread
            return read()
    return await run_in_threadpool(read)


def _found(job: T | None) -> T:
    if job is None:
        raise HTTPException(404, NO_SUCH_JOB)
    return job


def _json(
    answer: BaseModel, headers: Mapping[str, str] | None = None, status: int = 200
) -> Response:
    return Response(answer.model_dump_json(), status, headers, media_type="application/json")
