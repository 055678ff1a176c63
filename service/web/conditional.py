"""Weak ETags and If-None-Match (RFC 9110, sec. 8.8.3 and 13.1.2), and opaque cursors: pure."""

import base64
import binascii
import re
from collections.abc import Iterable
from hashlib import blake2b

from service.jobs import Observed, Periods, is_job_id

_TAGS = re.compile(r'(?:W/)?"([\x21\x23-\x7e\x80-\xff]*)"')


def etag_of(jobs: Iterable[Observed], periods: Periods, *more: object) -> str:
    """Return the weak ETag of what is said of `jobs`: their versions, ranks, and staleness.

    Ages grow by themselves and are left out: who gets a 304 adds the time since the last answer.
    """
    said = [
        (job.record.id, job.record.version, job.record.ranks, job.status(periods)) for job in jobs
    ]
    digest = blake2b(repr((said, more)).encode(), digest_size=12).hexdigest()
    return f'W/"{digest}"'


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
