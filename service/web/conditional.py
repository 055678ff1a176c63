"""Weak ETags and If-None-Match (RFC 9110, sec. 8.8.3 and 13.1.2), and opaque cursors: pure."""

import base64
import binascii
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from service.jobs import Observed, Periods, is_job_id

_TAGS = re.compile(r'(?:W/)?"([\x21\x23-\x7e\x80-\xff]*)"')


def etag_of(jobs: Iterable[Observed], periods: Periods, *more: object) -> str:
    """Return the weak ETag of what is said of `jobs`: their versions, ranks, and staleness.

    Ages grow by themselves and are left out: who gets a 304 adds the time since the last answer.
    """
    said = [said_of(job, periods) for job in jobs]
    digest = blake2b(repr((said, more)).encode(), digest_size=12).hexdigest()
    return f'W/"{digest}"'


def said_of(job: Observed, periods: Periods) -> tuple[object, ...]:
    """Return what differs where anything but its ages has changed of a job."""
    return (job.record.id, job.record.version, job.record.ranks, job.status(periods))


class Told:
    """What the last answers were made of, by ETag: so that the next one says what is new alone."""

    def __init__(self, kept: int = 256) -> None:
        self._kept = kept
        self._answers: OrderedDict[str, tuple[tuple[object, ...], ...]] = OrderedDict()

    def changed(
        self, jobs: Sequence[Observed], periods: Periods, etag: str, since: str | None
    ) -> Sequence[Observed] | None:
        """Return which of `jobs` changed since the answer of ETag `since`; keep this one.

        None where that is not known, or was of other jobs.
        """
        said = tuple(said_of(job, periods) for job in jobs)
        before = None if since is None else self._answers.get(since)
        self._answers[etag] = said
        self._answers.move_to_end(etag)
        if len(self._answers) > self._kept:
            self._answers.popitem(last=False)
        if before is None or [one[0] for one in before] != [one[0] for one in said]:
            return None
        pairs = zip(jobs, before, said, strict=True)
        return [job for job, then, now in pairs if then != now]


def is_known(if_none_match: str | None, etag: str) -> bool:
    """Whether the caller already holds the answer of that ETag, compared weakly."""
    if if_none_match is None:
        return False
    if if_none_match.strip() == "*":
        return True
    return etag.removeprefix("W/").strip('"') in _TAGS.findall(if_none_match)


def cursor_after(job_id: str) -> str:
    """Return the opaque cursor of the page that begins after a job."""
    return base64.urlsafe_b64encode(b"1" + bytes.fromhex(job_id)).decode().rstrip("=")


def job_before(cursor: str) -> str | None:
    """Return the id of the job that a cursor's page begins after; None for what is no cursor."""
    try:
        found = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except (binascii.Error, ValueError):
        return None
    job_id = found[1:].hex()
    return job_id if found[:1] == b"1" and is_job_id(job_id) else None
