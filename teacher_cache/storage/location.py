"""From a path or URL, as a user types it, to the place that it names."""

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from teacher_cache.errors import LocationError
from teacher_cache.local_path import local_path
from teacher_cache.storage.disk import Disk
from teacher_cache.storage.place import Place

if TYPE_CHECKING:
    pass


def locate(text: str) -> Place:
    """The place that a path or URL names.

    Raises:
        LocationError: no path, or the URL is of an unknown kind or holds credentials; the message
            does not repeat them.
        StoreError: obstore is not installed.
    """
    scheme, separator, _ = text.partition("://")
    if not separator:
        return Disk(local_path(text))
    _require_no_secret(scheme, text)
    if scheme == "file":
        return Disk(Path(unquote(urlsplit(text).path)))
    from teacher_cache.storage.bucket import open_bucket

    return open_bucket(text.rstrip("/"))


def _require_no_secret(scheme: str, text: str) -> None:
    """Refuse a URL that may hold a secret, since URLs are printed, logged and recorded.

    The message repeats nothing of the URL but its scheme.
    """
    url = urlsplit(text)
    names_container = scheme in ("abfs", "abfss") and ":" not in url.netloc  # container@account
    has_port = scheme in ("http", "https") and "@" not in url.netloc
    suspicious = ("@" in text and not names_container) or (":" in url.netloc and not has_port)
    if suspicious or url.query or url.fragment or "?" in text:
        raise LocationError(
            f"the {scheme}:// URL holds more than a place (a user, password, port, query or "
            f"fragment): write {scheme}://BUCKET/PREFIX and give credentials and endpoint in the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, ...)"
        )
