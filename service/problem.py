"""Errors as problem details (RFC 9457): one shape for every answer that is not a success."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from service.database import StoreError

_log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """What went wrong with a request."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


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
    app.add_exception_handler(StoreError, _store_problem)
    app.add_exception_handler(Exception, _unexpected_problem)


def _answer(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(problem.model_dump(), status, headers, media_type=MEDIA_TYPE)


async def _http_problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _answer(error.status_code, error.detail, dict(error.headers or {}))


async def _validation_problem(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults = [
        f"{'.'.join(str(part) for part in fault['loc'])}: got {str(fault.get('input'))[:80]!r}, "
        f"expected: {fault['msg']}"
        for fault in error.errors()
    ]
    return _answer(422, "; ".join(faults))


async def _store_problem(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s", error)  # the cause may name files and hosts: for the log only
    return _answer(503, "the database of job records cannot be read now; the log says why")


async def _unexpected_problem(request: Request, error: Exception) -> JSONResponse:
    return _answer(500, "the service failed on this request; its log says why")
