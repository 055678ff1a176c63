"""`cli.py jobs` without a service: the records themselves, said as the service says them."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel

from service.console.job_source import JobSourceError, Json
from service.jobs import IllegalTransitionError, Periods, Status
from service.records.connections.database import default_url
from service.records.job_store import JobLivesError, open_store
from service.web.answer_models import (
    LogAnswer,
    events_answer,
    job_answer,
    job_row,
    jobs_answer,
    ranks_answer,
    series_answer,
)
from service.web.conditional import cursor_after, job_before

T = TypeVar("T")


class StoredJobs:
    """The jobs on record at `url`, RETORT_DB or the default file if None."""

    def __init__(self, url: str | None = None) -> None:
        self._store = open_store(default_url() if url is None else url)
        self._periods = Periods()
        self.where = self._store.database_name

    def jobs(self, *, limit: int, **filters: Any) -> Json:
        """Return a page of jobs."""
        cursor = filters.pop("cursor", None)
        before = None if cursor is None else job_before(cursor)
        filters["beginning"] = filters.pop("id", None)
        if filters.get("status") is not None:
            filters["status"] = Status(filters["status"])
        page = self._store.list(limit=limit, cursor=before, **filters)
        following = None if page.next_cursor is None else cursor_after(page.next_cursor)
        return _json(jobs_answer(page, self._periods, following, self.where))

    def job(self, job_id: str) -> Json:
        """Return one job in full."""
        return _json(job_answer(self._found(job_id, self._store.get), self._periods))

    def ranks(self, job_id: str) -> list[Json]:
        """Return a job's ranks in order."""
        found = self._found(job_id, self._store.ranks)
        return list(_json(ranks_answer(found, self._periods))["ranks"])

    def events(self, job_id: str) -> Json:
        """Return the newest events of a job."""
        read = partial(self._store.events, newest=True)
        return _json(events_answer(self._found(job_id, read), 0))

    def log(self, job_id: str) -> Json:
        """Return the end of a job's log."""
        return _json(LogAnswer.model_validate(self._found(job_id, self._store.log)))

    def cancel(self, job_id: str) -> Json:
        """Ask a job to stop; return it."""
        try:
            job = self._found(job_id, self._store.request_cancel)
        except IllegalTransitionError as error:
            raise JobSourceError(f"the job has ended: it is {error.current}") from None
        return _json(job_row(job, self._periods))

    def remove(self, job_id: str) -> None:
        """Remove the record of a job that has ended or crashed."""
        try:
            self._found(job_id, lambda found: self._store.remove(found, self._periods) or None)
        except JobLivesError as error:
            raise JobSourceError(str(error)) from None

    def metrics(self, job_id: str) -> list[Json]:
        """Return the points of all of a job's metrics."""
        names = [one.name for one in self._found(job_id, self._store.metric_names)]
        found = self._found(job_id, lambda job: self._store.metrics(job, names, sys.maxsize))
        return list(_json(series_answer(found))["series"])

    def _found(self, job_id: str, read: Callable[[str], T | None]) -> T:
        found = read(job_id)
        if found is None:
            raise JobSourceError(f"got {job_id!r}, expected a job's id: see 'jobs ls'")
        return found


def _json(answer: BaseModel) -> Json:
    return answer.model_dump(mode="json")
