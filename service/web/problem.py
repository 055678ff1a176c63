"""Errors as problem details (RFC 9457): one shape for every answer that is not a success."""

import logging
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Scope

from service.records.connections.engines import DatabaseError

_log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """What went wrong with a request."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str
    """The same as in the service's log and in the answer's X-Request-Id."""


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the declaration of these error answers, for a route's `responses`."""
    content = {MEDIA_TYPE: {"schema": Problem.model_json_schema()}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in statuses
    }


def answer_problems(app: FastAPI) -> None:
    """Make `app` answer every error as a problem, without a word of the machine it runs on."""
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _validation_problem)
    app.add_exception_handler(DatabaseError, _store_problem)


def problem(
    scope: Scope, status: int, detail: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return the answer to a request that failed."""
    found = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        request_id=request_id(scope),
    )
    return JSONResponse(found.model_dump(), status, headers, media_type=MEDIA_TYPE)


def request_id(scope: Scope) -> str:
    """Return the id of a request, made up when it is first asked for."""
    state = scope.setdefault("state", {})
    if "request_id" not in state:
        state["request_id"] = secrets.token_hex(8)
    made: str = state["request_id"]
    return made


async def _http_problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return problem(request.scope, error.status_code, error.detail, error.headers)


async def _validation_problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = [
        f"{'.'.join(str(part)[:40] for part in fault['loc'])}: "
        f"got {str(fault.get('input'))[:80]!r}, expected: {fault['msg'][:200]}"
        for fault in error.errors()[:4]
    ]
    return problem(request.scope, 422, "; ".join(faults))


async def _store_problem(request: Request, error: Exception) -> JSONResponse:
    # the cause may name files and hosts: for the log only
    _log.error("request %s: %s", request_id(request.scope), error)
    request.app.state.traffic.database_errors.inc()
    return problem(
        request.scope,
        503,
        "the database of job records cannot be used now; the service's log says why",
    )
