"""Who may ask: the names that the service answers to, its tokens, where a proxy publishes it."""

import os
import secrets
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

TOKEN_BYTES = 32
"""The shortest token that is accepted."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
OWN_FOLDERS = ("/api", "/jobs", "/static", "/livez", "/readyz", "/metrics", "/openapi.json")
"""Paths of the service itself, below none of which it can be published."""


class AccessRefusedError(ValueError):
    """The service cannot be started so: the message says what to do."""


@dataclass(frozen=True, slots=True)
class Access:
    """Under which names the service may be asked for, and with which tokens."""

    hosts: frozenset[str] = LOOPBACK_NAMES
    token: str | None = None
    """Who has it may read and change."""
    read_token: str | None = None
    """Who has it may read."""
    origin: str | None = None
    """Scheme, host and port under which a proxy publishes the service: https://jobs.example."""
    prefix: str = ""
    """The path below which it does: /retort."""

    def allows(self, given: str, *, only_read: bool) -> bool:
        """Whether a token that was sent suffices.

        Compared in constant time, so that the answer's delay tells nothing of the tokens.
        """
        held = [self.token, self.read_token if only_read else None]
        return any([_is_same(given, token) for token in held if token is not None])

    def knows(self, given: str) -> bool:
        """Whether a token that was sent is one of this service's."""
        return self.allows(given, only_read=True)


def access_to(
    host: str,
    allowed_hosts: tuple[str, ...] = (),
    token_file: Path | None = None,
    *,
    read_token_file: Path | None = None,
    public_url: str | None = None,
) -> Access:
    """Return who may ask a service that listens on `host`.

    The token is that of `token_file`, or of the environment's RETORT_TOKEN.

    Raises:
        AccessRefusedError: a token that is too short, or none where others reach the service; a
            public URL that is none.
    """
    token = read_token(token_file)
    if token is None and not is_loopback(host):
        raise AccessRefusedError(
            f"got --host {host} without a token: whoever reaches it could read every record and "
            f"cancel jobs: put {TOKEN_BYTES} bytes or more into a file ('openssl rand -hex 32') "
            "and name it with --token-file, or set RETORT_TOKEN"
        )
    only_read = None if read_token_file is None else _token_in(read_token_file, "--read-token-file")
    if only_read is not None and (token is None or only_read == token):
        raise AccessRefusedError(
            f"got --read-token-file {read_token_file} "
            f"{'without' if token is None else 'with the token of'} --token-file, expected two "
            "tokens: one that may read, one that may also stop jobs"
        )
    origin, prefix, name = _published(public_url)
    named = (host, *allowed_hosts, *([] if name is None else [name]))
    hosts = LOOPBACK_NAMES | {each.strip("[]").lower() for each in named}
    return Access(hosts, token, only_read, origin, prefix)


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
        return _token_in(file, "--token-file")
    token = os.environ.get("RETORT_TOKEN", "").strip()
    return _checked(token, "RETORT_TOKEN") if token else None


def _token_in(file: Path, option: str) -> str:
    try:
        return _checked(file.read_text().strip(), f"{option} {file}")
    except (OSError, UnicodeDecodeError) as error:
        raise AccessRefusedError(f"{option} {file} cannot be read: {error}") from error


def _checked(token: str, source: str) -> str:
    if len(token.encode()) < TOKEN_BYTES or not token.isascii() or not token.isprintable():
        raise AccessRefusedError(
            f"{source} holds {len(token.encode())} bytes, expected a token of {TOKEN_BYTES} or "
            "more printable ASCII characters: 'openssl rand -hex 32' makes one"
        )
    return token


def _published(url: str | None) -> tuple[str | None, str, str | None]:
    """Return origin, path and host of the URL under which a proxy publishes the service."""
    if url is None:
        return None, "", None
    try:
        found = urlsplit(url)
        host, prefix = found.hostname, found.path.rstrip("/")
        known = found.scheme in ("http", "https") and found.username is None and found.port != 0
    except ValueError:
        host, prefix, known = None, "", False
    if host is None or not known or found.query or found.fragment:
        raise AccessRefusedError(
            f"got --public-url {url}, expected where a proxy publishes the service, such as "
            "https://jobs.example or https://example.org/retort"
        )
    if prefix and f"/{prefix.split('/')[1]}" in OWN_FOLDERS:
        raise AccessRefusedError(
            f"got --public-url {url}: {prefix} begins like a path of the service's own, expected "
            "another one, such as /retort"
        )
    return f"{found.scheme}://{found.netloc}".lower(), prefix, host


def _is_same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode("latin-1", "replace"), token.encode())
