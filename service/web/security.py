"""Who may ask, and what every answer says to a browser: one ASGI layer around the whole service.

A page of another site cannot read the records (no CORS), cannot be given them under its own name
(Host is checked, which DNS rebinding cannot forge) and cannot cancel a job (Origin is checked).
"""

import logging
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.web.problem import problem, request_id
from service.web.prometheus import Traffic

_log = logging.getLogger(__name__)

TOKEN_BYTES = 32
"""The shortest token that is accepted."""
MAX_HEADER_BYTES = 16_384
"""All header lines of a request together."""
MAX_BODY_BYTES = 1_024
"""No endpoint reads a body."""
OPEN_PATHS = frozenset({"/livez", "/", "/favicon.ico"})
OPEN_PREFIXES = ("/static/", "/jobs/")
"""What is served without a token: the page's own files, which hold no data."""
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class AccessRefusedError(ValueError):
    """The service cannot be started so: the message says what to do."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask: the names under which the service may be asked for, and the token."""

    hosts: frozenset[str] = frozenset({"localhost", "127.0.0.1", "::1"})
    token: str | None = None


def access_to(
    host: str, allowed_hosts: tuple[str, ...] = (), token_file: Path | None = None
) -> Access:
    """Return who may ask a service that listens on `host`.

    The token is that of `token_file`, or of the environment's RETORT_TOKEN.

    Raises:
        AccessRefusedError: a token that is too short, or none where others reach the service.
    """
    token = read_token(token_file)
    if token is None and not is_loopback(host):
        raise AccessRefusedError(
            f"got --host {host} without a token: whoever reaches it could read every record and "
            f"cancel jobs: put {TOKEN_BYTES} bytes or more into a file ('openssl rand -hex 32') "
            "and name it with --token-file, or set RETORT_TOKEN"
        )
    return Access(
        Access().hosts | {name.strip("[]").lower() for name in (host, *allowed_hosts)}, token
    )


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine reach `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_token(file: Path | None) -> str | None:
    """Return the token in `file`, else that of the environment's RETORT_TOKEN, else None.

    Raises:
        AccessRefusedError: the file cannot be read, or the token is too short.
    """
    if file is not None:
        try:
            token, source = file.read_text().strip(), f"--token-file {file}"
        except (OSError, UnicodeDecodeError) as error:
            raise AccessRefusedError(f"--token-file {file} cannot be read: {error}") from error
    else:
        token, source = os.environ.get("RETORT_TOKEN", "").strip(), "RETORT_TOKEN"
        if not token:
            return None
    if len(token.encode()) < TOKEN_BYTES or not token.isascii() or not token.isprintable():
        raise AccessRefusedError(
            f"{source} holds {len(token.encode())} bytes, expected a token of {TOKEN_BYTES} or "
            "more printable ASCII characters: 'openssl rand -hex 32' makes one"
        )
    return token


class Guard:
    """Refuses what may not be asked, completes every answer's headers, and times it."""

    def __init__(self, app: ASGIApp, access: Access, traffic: Traffic) -> None:
        self._app = app
        self._access = access
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = time.perf_counter()
        status = 500

        async def complete(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id(scope)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "private, no-cache")
            await send(message)

        try:
            await (refusal(scope, self._access) or self._app)(scope, receive, complete)
        except Exception:  # noqa: BLE001 - it is logged whole, and the caller gets its answer
            _log.exception("request %s failed", request_id(scope))
            answer = problem(scope, 500, "the service failed on this request; its log says why")
            await answer(scope, receive, complete)
        finally:
            self._traffic.observe(scope, status, time.perf_counter() - began_s)


def refusal(scope: Scope, access: Access) -> ASGIApp | None:
    """Return the answer to a request that is refused before it reaches any endpoint."""
    size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if size > MAX_HEADER_BYTES:
        return problem(
            scope, 431, f"got {size} bytes of headers, expected {MAX_HEADER_BYTES} or fewer"
        )
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    if _host_of(headers.get(b"host", "")) not in access.hosts:
        return problem(
            scope,
            400,
            "the service is not known by this Host: ask it by its own name, or start "
            "it with --allow-host NAME",
        )
    length = headers.get(b"content-length", "0")
    if not length.isdecimal() or len(length) > 9 or int(length) > MAX_BODY_BYTES:
        return problem(
            scope, 413, f"expected a body of {MAX_BODY_BYTES} bytes or fewer: none is read"
        )
    if not _may_read(scope["path"], headers, access.token):
        challenge = {"www-authenticate": 'Bearer realm="retort"'}
        return problem(scope, 401, "expected the header 'Authorization: Bearer TOKEN'", challenge)
    if scope["method"] not in ("GET", "HEAD") and not _is_same_origin(headers):
        return problem(scope, 403, "a page of another site may not change anything here")
    return None


def _may_read(path: str, headers: Mapping[bytes, str], token: str | None) -> bool:
    if token is None or path in OPEN_PATHS or path.startswith(OPEN_PREFIXES):
        return True
    scheme, _, given = headers.get(b"authorization", "").partition(" ")
    # compared in constant time, so that the answer's delay tells nothing of the token
    same = secrets.compare_digest(given.strip().encode("latin-1"), token.encode())
    return scheme.lower() == "bearer" and same


def _is_same_origin(headers: Mapping[bytes, str]) -> bool:
    """Whether no browser says that another site asks; other programs send neither header."""
    if headers.get(b"sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get(b"origin")
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc.lower() == headers.get(b"host", "").lower() != ""
    except ValueError:
        return False


def _host_of(header: str) -> str | None:
    """Return the name in a Host header, without port and brackets; None for what is none."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None
