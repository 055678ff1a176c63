"""Where `cli.py jobs` reads from: the database itself, or a service's HTTP interface.

Both give the same JSON. HTTP is spoken by the standard library: one question at a time every two
seconds needs no client package in the service's image.
"""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Protocol

TIMEOUT_S = 10.0
Json = dict[str, Any]


class JobSourceError(Exception):
    """A question that was not answered; the message says by whom and what to do."""


class JobSource(Protocol):
    """What can be asked about jobs; every method raises `JobSourceError` or `DatabaseError`."""

    where: str
    """The database, or the service, that is asked."""

    def jobs(self, *, limit: int, **filters: Any) -> Json:
        """Return a page of jobs, newest first; filters: `cursor`, `status`, `kind`, `id`."""

    def job(self, job_id: str) -> Json:
        """Return one job in full."""

    def ranks(self, job_id: str) -> list[Json]:
        """Return a job's ranks in order."""

    def events(self, job_id: str) -> Json:
        """Return the newest 200 `events` of a job, oldest first, and whether there are `more`."""

    def log(self, job_id: str) -> Json:
        """Return the last `lines` of a job's log, and the `traceback` of its failure."""

    def cancel(self, job_id: str) -> Json:
        """Ask a job to stop; return it."""

    def remove(self, job_id: str) -> None:
        """Remove the record of a job that has ended or crashed."""

    def metrics(self, job_id: str) -> list[Json]:
        """Return the points of all of a job's metrics; through a service at most 2,000 of each."""


def resolve(source: JobSource, prefix: str) -> str:
    """Return the one job's id that begins with `prefix`.

    Raises:
        JobSourceError: none does, or several do.
    """
    if len(prefix) == 32:
        return prefix
    if not re.fullmatch("[0-9a-f]{1,31}", prefix):
        raise JobSourceError(f"got {prefix!r}, expected a job's id or its beginning: see 'jobs ls'")
    page = source.jobs(limit=3, id=prefix)
    found = [str(row["id"]) for row in page["jobs"]]
    more = page["next_cursor"] is not None
    if len(found) == 1:
        return found[0]
    if not found:
        raise JobSourceError(f"got {prefix!r}, expected a job's id or its beginning: see 'jobs ls'")
    some = ", ".join(found) + (", ..." if more else "")
    raise JobSourceError(f"{prefix!r} is the beginning of several ids, give more: {some}")


class HttpJobs:
    """The jobs of a service at `url`, such as http://127.0.0.1:8000."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self._url = self.where = url.rstrip("/")
        self._token = token
        # a redirect would carry the token elsewhere
        self._opener = urllib.request.build_opener(_NoRedirect)

    def jobs(self, *, limit: int, **filters: Any) -> Json:
        """Return a page of jobs."""
        return self._ask("GET", "", limit=limit, **filters)

    def job(self, job_id: str) -> Json:
        """Return one job in full."""
        return self._ask("GET", f"/{_quoted(job_id)}")

    def ranks(self, job_id: str) -> list[Json]:
        """Return a job's ranks in order."""
        return list(self._ask("GET", f"/{_quoted(job_id)}/ranks")["ranks"])

    def events(self, job_id: str) -> Json:
        """Return the newest events of a job."""
        return self._ask("GET", f"/{_quoted(job_id)}/events", newest="true")

    def log(self, job_id: str) -> Json:
        """Return the end of a job's log."""
        return self._ask("GET", f"/{_quoted(job_id)}/log")

    def cancel(self, job_id: str) -> Json:
        """Ask a job to stop; return it."""
        return self._ask("POST", f"/{_quoted(job_id)}/cancel")

    def remove(self, job_id: str) -> None:
        """Remove the record of a job that has ended or crashed."""
        self._ask("DELETE", f"/{_quoted(job_id)}")

    def metrics(self, job_id: str) -> list[Json]:
        """Return the points of all of a job's metrics, at most 2,000 of each."""
        path = f"/{_quoted(job_id)}/metrics"
        names = [one["name"] for one in self._ask("GET", path)["names"]]
        found = (self._ask("GET", path, name=name, points=2000)["series"] for name in names)
        return [one for series in found for one in series]

    def _ask(self, method: str, path: str, **params: object) -> Json:
        query = urllib.parse.urlencode({k: v for k, v in params.items() if v is not None})
        address = f"{self._url}/api/v1/jobs{path}" + (f"?{query}" if query else "")
        if not address.startswith(("http://", "https://")):
            raise JobSourceError(f"got --url {self._url}, expected http://HOST:PORT or https://")
        request = urllib.request.Request(address, method=method)  # noqa: S310 - checked above
        request.add_header("Accept", "application/json")
        if self._token is not None:
            request.add_header("Authorization", f"Bearer {self._token}")
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                body: Json = {} if answer.status == 204 else json.load(answer)
        except urllib.error.HTTPError as error:
            raise JobSourceError(self._refusal(error)) from None
        except (urllib.error.URLError, OSError) as error:
            why = getattr(error, "reason", error)
            raise JobSourceError(
                f"{self._url} does not answer ({why}): is 'cli.py serve' running there?"
            ) from None
        except ValueError:
            raise JobSourceError(f"{self._url} is no job status service: not JSON") from None
        return body

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        with error:
            if error.code == 401:
                return f"{self._url} asks for a token: pass --token-file FILE, or set RETORT_TOKEN"
            try:
                detail = json.load(error)["detail"]
            except (ValueError, KeyError, TypeError, OSError):
                detail = error.reason
        return f"{self._url}: {detail} ({error.code})"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow none: the answer becomes an HTTPError."""
        return


def _quoted(job_id: str) -> str:
    return urllib.parse.quote(job_id, safe="")
