"""The objects below a URL, through obstore; a failed request is repeated for a limited time.

obstore knows the protocols (S3, Google, Azure, plain HTTP) and takes credentials and endpoints from
the environment. This module adds three things: retries that also hold for conditional writes and
time-outs; errors that say what to do when the time is over; and that no error holds a secret.
"""

import os
import random
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from teacher_cache.errors import LocationError, StoreError, UnexpectedFile

try:
    import obstore
    from obstore import exceptions, store
except ImportError:  # the extra `stores`; `open_objects` says so
    obstore = None  # type: ignore[assignment]

PATIENCE_S = "RETORT_STORE_PATIENCE_S"
"""The variable that says for how long a failing request is repeated; 300 s by default."""
TIMEOUT_S = "RETORT_STORE_TIMEOUT_S"
"""The variable that says after how long a single request has failed; 30 s by default."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 15.0

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Stored:
    """What the store says of an object."""

    key: str
    size: int
    """Bytes."""
    tag: str
    """The store's ETag, which changes with the object; empty where the store has none."""
    modified: datetime


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """Objects by their keys below a URL. Every method may raise StoreError."""

    url: str
    client: Any
    patience_s: float
    timeout_s: float
    """The most that one request counts of `patience_s`: a process that was suspended during a
    request has waited for less than the clock says."""

    def get(self, key: str, at_most: int | None = None) -> tuple[bytes, str] | None:
        """An object's bytes and its tag; None if there is no such object.

        Raises:
            UnexpectedFile: it has more than `at_most` bytes; they are not read.
        """

        def read() -> tuple[bytes, str]:
            found = obstore.get(self.client, key)
            size = found.meta["size"]
            if at_most is not None and size > at_most:
                raise UnexpectedFile(
                    self.url, key, f"has {size} bytes, at most {at_most} are expected"
                )
            return bytes(found.bytes()), found.meta["e_tag"] or ""

        try:
            return self._tried("read", key, read)
        except FileNotFoundError:
            return None

    def head(self, key: str) -> Stored | None:
        """What the store says of an object; None if there is no such object."""
        try:
            return self._tried("look at", key, lambda: _stored(obstore.head(self.client, key)))
        except FileNotFoundError:
            return None

    def put(self, key: str, data: bytes) -> None:
        """Write an object, over the one that is there."""
        self._written(key, lambda: obstore.put(self.client, key, data, use_multipart=False))

    def create(self, key: str, data: bytes) -> bool:
        """Write an object if there is none; False if there is one with other bytes.

        If the answer to a successful try got lost, the next try finds this writer's own object, and
        the result is True.
        """

        def write() -> bool:
            try:
                obstore.put(self.client, key, data, mode="create", use_multipart=False)
            except exceptions.AlreadyExistsError as error:
                found = self.get(key)
                if found is None:  # it was just removed, or two conditional writes met (S3's 409)
                    raise _Again(str(error)) from None
                return found[0] == data
            return True

        return self._written(key, write)

    def copy(self, key: str, to: str) -> bool:
        """Copy an object within the store, over the one that is there; False if `key` has none."""
        try:
            self._tried("copy", key, lambda: obstore.copy(self.client, key, to))
        except FileNotFoundError:
            return False
        return True

    def delete(self, key: str) -> None:
        """Remove an object, if it is there."""
        with suppress(FileNotFoundError):
            self._tried("remove", key, lambda: obstore.delete(self.client, key))

    def list(self, below: str = "") -> list[Stored]:
        """Every object whose key begins with this folder."""

        def read() -> list[Stored]:
            return [_stored(meta) for meta in obstore.list(self.client, below or None).collect()]

        try:
            return self._tried("list", below, read)
        except FileNotFoundError:
            return []

    def _written(self, key: str, request: Callable[[], Result]) -> Result:
        try:
            return self._tried("write", key, request)
        except FileNotFoundError as error:  # what is missing is the bucket
            raise self._refused("write", key, error) from None

    def _tried(self, verb: str, key: str, request: Callable[[], Result]) -> Result:
        """Repeat a request that fails for a temporary reason, with longer and longer pauses.

        Only the time that was slept or spent in requests counts as waiting: time in which the
        process was suspended (SIGSTOP, a laptop's lid) says nothing about the store.
        """
        waited_s, pause_s, tries = 0.0, FIRST_PAUSE_S, 0
        while True:
            tries += 1
            started = time.monotonic()
            try:
                return request()
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise self._refused(verb, key, error) from None
                raise
            except (exceptions.BaseError, _Again, OSError) as error:
                if not _may_pass(error):
                    raise self._refused(verb, key, error) from None
                waited_s += min(time.monotonic() - started, self.timeout_s)
                if waited_s + pause_s > self.patience_s:
                    raise StoreError(
                        f"cannot {verb} {self.url}/{key}: the store failed for {waited_s:.0f} s "
                        f"({tries} tries; at last: {_reason(error)}): nothing that was committed "
                        "is lost; the same command continues when the store answers again "
                        f"({PATIENCE_S} is for how long it is asked)"
                    ) from None
            # a random share, so that writers that failed together do not try again together
            slept_s = pause_s * random.uniform(0.5, 1.0)
            time.sleep(slept_s)
            waited_s += slept_s
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _refused(self, verb: str, key: str, error: Exception) -> StoreError:
        return StoreError(
            f"cannot {verb} {self.url}/{key}: {_reason(error)}: check the URL, the bucket, and the "
            "credentials and endpoint in the environment (AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, ...)"
        )


class _Again(Exception):
    """A request must be repeated, though the store refused it."""


def open_objects(url: str) -> Objects:
    """Open the objects below a URL; credentials come from the environment.

    Raises:
        StoreError: obstore is not installed.
        LocationError: obstore cannot open this URL with the settings in the environment.
    """
    if obstore is None:
        raise StoreError(
            f"{url} needs obstore, which is missing: pip install 'retort-distill[stores]'"
        )
    if url.partition("://")[0] == "memory":
        raise LocationError(f"{url} ends with the process: choose a folder, or s3://BUCKET/PREFIX")
    try:
        client = store.from_url(
            url,
            client_options=_client_options(os.environ),
            retry_config={"max_retries": 0},
        )
    except (exceptions.BaseError, ValueError) as error:
        raise LocationError(
            f"{url} cannot be opened: {_reason(error)}: expected a path, s3://BUCKET/PREFIX, "
            "gs://..., az://... or https://..."
        ) from None
    return Objects(url, client, _seconds(PATIENCE_S, 300.0), _seconds(TIMEOUT_S, 30.0))


def _client_options(environment: Mapping[str, str]) -> Any:
    """The HTTP options for obstore: our time-outs, and the options that the environment sets.

    obstore reads these variables itself, but not if options are passed; so they are repeated here.
    """
    timeout_s = _seconds(TIMEOUT_S, 30.0)
    options: dict[str, Any] = {
        "timeout": f"{int(1000 * timeout_s)}ms",
        "connect_timeout": f"{int(1000 * min(timeout_s, 5.0))}ms",
    }
    for name in ("allow_http", "allow_invalid_certificates", "proxy_url", "proxy_excludes"):
        for cloud in ("AWS", "AZURE", "GOOGLE"):
            value = environment.get(f"{cloud}_{name.upper()}")
            if value:
                options[name] = value.lower() == "true" if name.startswith("allow") else value
    if environment.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        options["allow_http"] = True
    return options


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise LocationError(f"{name} is {text!r}, expected a number of seconds, such as {default}")
    return seconds


def _stored(meta: Any) -> Stored:
    return Stored(meta["path"], meta["size"], meta["e_tag"] or "", meta["last_modified"])


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later: a server failed, a time-out, a broken line."""
    if isinstance(error, _Again | OSError):
        return True
    if type(error) is not exceptions.GenericError:  # permission, unknown settings, ...
        return False
    # A "builder error" is plain http without permission for it. The address is that of the cloud's
    # metadata service, which obstore asks when the environment holds no credentials.
    if "builder error" in str(error) or "169.254.169.254" in str(error):
        return False
    status = re.search(r"status code: (\d{3})", str(error))
    return status is None or int(status[1]) >= 500 or int(status[1]) in (408, 409, 425, 429)


def _reason(error: Exception) -> str:
    """An error in one line, without the environment's secrets or a query, which may be signed."""
    text = str(error).strip().partition("\n")[0]
    if "169.254.169.254" in text:
        text = "no credentials in the environment"
    if "builder error" in text:
        text += " (plain http needs AWS_ALLOW_HTTP=true)"
    text = re.sub(r"\?[^\s)\"'>]+", "?...", text)
    for name, value in os.environ.items():
        if len(value) >= 8 and re.search(r"SECRET|TOKEN|KEY|PASS|SAS", name.upper()):
            text = text.replace(value, "...")
    return text[:400]
