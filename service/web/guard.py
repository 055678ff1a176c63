"""What every request passes, and what every answer says to a browser: one ASGI layer around all.

A page of another site cannot read the records (no CORS), cannot be given them under its own name
(Host is checked, which DNS rebinding cannot forge) and cannot cancel a job (Origin is checked).
"""

import logging
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.web.problem import problem, request_id
from service.web.prometheus import Traffic
from service.web.security import Access

_log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 16_384
"""All header lines of a request together."""
MAX_BODY_BYTES = 1_024
"""No endpoint reads a body."""
PROBES = frozenset({"/livez", "/readyz"})
"""Answered under any name and without a token: orchestrators ask by address."""
OPEN_PATHS = PROBES | {"/", "/favicon.ico"}
OPEN_PREFIXES = ("/static/", "/jobs/")
"""What is served without a token: the page's own files, which hold no data."""
WRONG_TOKENS_TOLD = 30
"""Lines a minute in the log on wrong tokens; further ones are counted."""
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
_READS = ("GET", "HEAD")


class Guard:
    """Refuses what may not be asked, completes every answer's headers, times it, logs changes."""

    def __init__(self, app: ASGIApp, access: Access, traffic: Traffic) -> None:
        self._app = app
        self._access = access
        self._traffic = traffic
        self._wrong_tokens = _WrongTokens()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = time.perf_counter()
        method, status = scope["method"], 500
        scope = _placed(scope, self._access.prefix)
        if method == "HEAD":  # whoever answers GET answers it
            scope["method"] = "GET"

        async def complete(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id(scope)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "private, no-cache")
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            await (refusal(scope, self._access) or self._app)(scope, receive, complete)
        except Exception:  # noqa: BLE001 - it is logged whole, and the caller gets its answer
            _log.exception("request %s failed", request_id(scope))
            answer = problem(scope, 500, "the service failed on this request; its log says why")
            await answer(scope, receive, complete)
        finally:
            self._traffic.observe(scope, status, time.perf_counter() - began_s)
            self._tell(scope, method, status)

    def _tell(self, scope: Scope, method: str, status: int) -> None:
        """Log changes, allowed and refused, and wrong tokens."""
        headers = _headers_of(scope)
        if status == 401 and (given := _token_of(headers)) and not self._access.knows(given):
            self._wrong_tokens.tell(_sender(scope, headers))
        elif method not in _READS:
            path = scope["path"].removeprefix(scope["root_path"])
            shown = path[:100].encode("unicode_escape").decode()
            _log.info("%s %s from %s: %d", method, shown, _sender(scope, headers), status)


class _WrongTokens:
    """Says who sends wrong tokens, without letting them fill the disk."""

    def __init__(self) -> None:
        self._minute = 0
        self._count = 0

    def tell(self, sender: str) -> None:
        """Log one wrong token, or count it for the next minute's first line."""
        minute = int(time.monotonic() // 60)
        if minute != self._minute:
            if self._count > WRONG_TOKENS_TOLD:
                _log.warning("%d further wrong tokens", self._count - WRONG_TOKENS_TOLD)
            self._minute, self._count = minute, 0
        self._count += 1
        if self._count <= WRONG_TOKENS_TOLD:
            _log.warning("a wrong token from %s", sender)


def refusal(scope: Scope, access: Access) -> ASGIApp | None:
    """Return the answer to a request that is refused before it reaches any endpoint."""
    size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if size > MAX_HEADER_BYTES:
        return problem(
            scope, 431, f"got {size} bytes of headers, expected {MAX_HEADER_BYTES} or fewer"
        )
    headers = _headers_of(scope)
    path = scope["path"].removeprefix(scope["root_path"])
    if path not in PROBES and _host_of(headers.get(b"host", "")) not in access.hosts:
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
    if path == "":  # below its prefix the page's own addresses are relative
        return RedirectResponse(f"{access.prefix}/", 308)
    return _refused_token(scope, path, headers, access) or _refused_origin(scope, headers, access)


def _refused_token(
    scope: Scope, path: str, headers: Mapping[bytes, str], access: Access
) -> ASGIApp | None:
    if access.token is None or path in OPEN_PATHS or path.startswith(OPEN_PREFIXES):
        return None
    given = _token_of(headers)
    if given is None or not access.knows(given):
        challenge = {"www-authenticate": 'Bearer realm="retort"'}
        return problem(scope, 401, "expected the header 'Authorization: Bearer TOKEN'", challenge)
    if not access.allows(given, only_read=scope["method"] in _READS):
        return problem(scope, 403, "this token may only read: changes ask for the other one")
    return None


def _refused_origin(scope: Scope, headers: Mapping[bytes, str], access: Access) -> ASGIApp | None:
    if scope["method"] in _READS or _is_same_origin(headers, access.origin):
        return None
    return problem(
        scope,
        403,
        "a page of another site may not change anything here; behind a proxy, start the service "
        "with --public-url URL",
    )


def _is_same_origin(headers: Mapping[bytes, str], published: str | None) -> bool:
    """Whether no browser says that another site asks; other programs send neither header."""
    if headers.get(b"sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get(b"origin")
    if origin is None or origin.lower() == published:
        return True
    try:
        return urlsplit(origin).netloc.lower() == headers.get(b"host", "").lower() != ""
    except ValueError:
        return False


def _placed(scope: Scope, prefix: str) -> Scope:
    """Return a request's scope below `prefix`, whether a proxy has cut that off or not."""
    path = scope["path"]
    if not prefix:
        return {**scope, "root_path": ""}
    if path != prefix and not path.startswith(f"{prefix}/"):
        path = prefix + path
    return {**scope, "root_path": prefix, "path": path, "raw_path": path.encode()}


def _headers_of(scope: Scope) -> dict[bytes, str]:
    return {name: value.decode("latin-1") for name, value in scope["headers"]}


def _token_of(headers: Mapping[bytes, str]) -> str | None:
    scheme, _, given = headers.get(b"authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else None


def _sender(scope: Scope, headers: Mapping[bytes, str]) -> str:
    """Return the address that a request came from, and for whom a proxy says that it was."""
    client = scope.get("client")
    address = client[0] if client else "unknown"
    said = headers.get(b"x-forwarded-for", "")[:100].encode("unicode_escape").decode()
    return f"{address} (for {said}, it says)" if said else address


def _host_of(header: str) -> str | None:
    """Return the name in a Host header, without port and brackets; None for what is none."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None
