"""A real service whose database is locked, or whose callers send nothing, half, or too slowly."""

import re
import select
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from service.records.job_store import JobStore

SERVE = """
    import sys
    from service.records.connections import database
    from service.web import app, connections
    database.READ_TIMEOUT_S = 5.0
    connections.REQUEST_TIMEOUT_S, connections.CONNECTIONS = float(sys.argv[2]), int(sys.argv[3])
    app.serve(port=0, url=sys.argv[1])
"""
HALF = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
def serve(start_python: Callable[..., Any], url: str) -> Callable[..., tuple[str, Any]]:
    """Start a service; returns its URL and its process."""

    def start(timeout_s: float = 10.0, connections: int = 512) -> tuple[str, Any]:
        process = start_python(SERVE, url, str(timeout_s), str(connections))
        for line in process.stderr:
            if "jobs on " in line:
                return line.split("jobs on ")[1].strip(), process
        pytest.fail("the service did not start")

    return start


@pytest.fixture
def connect() -> Iterator[Callable[[str], socket.socket]]:
    """Open connections to a service, closed at the end."""
    with ExitStack() as opened:

        def open_(base: str) -> socket.socket:
            address = urlsplit(base)
            assert address.port is not None
            made = socket.create_connection(("127.0.0.1", address.port), timeout=60)
            return opened.enter_context(closing(made))

        yield open_


def test_life_is_told_while_the_database_is_locked(
    serve: Callable[..., tuple[str, Any]],
    connect: Callable[[str], socket.socket],
    store: JobStore,
    create: Callable[..., str],
    file: Path,
) -> None:
    job = create(store)
    base, _ = serve()
    with closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("DELETE FROM events WHERE id < 0")  # from here on no one else reads
        asked = [connect(base) for _ in range(6)]
        for each in asked:
            each.sendall(f"GET /api/v1/jobs/{job} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert httpx.get(f"{base}/livez", timeout=60).status_code == 200
        answered, _, _ = select.select(asked, [], [], 0)
        assert answered == [], "life waited for the database"
        assert {each.recv(12) for each in asked} == {b"HTTP/1.1 503"}
        assert httpx.get(f"{base}/readyz", timeout=60).status_code == 503
    assert httpx.get(f"{base}/api/v1/jobs/{job}").status_code == 200


@pytest.mark.parametrize(
    "sent",
    [b"", HALF, b"POST /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"],
    ids=["nothing", "half a head", "no body"],
)
def test_a_connection_without_a_whole_request_is_closed(
    serve: Callable[..., tuple[str, Any]], connect: Callable[[str], socket.socket], sent: bytes
) -> None:
    base, _ = serve(timeout_s=0.3)
    connection = connect(base)
    connection.sendall(sent)
    assert closed(connection)


def test_who_goes_on_sending_slowly_is_closed_too(
    serve: Callable[..., tuple[str, Any]], connect: Callable[[str], socket.socket]
) -> None:
    base, _ = serve(timeout_s=0.5)
    connection = connect(base)
    connection.sendall(HALF)
    connection.settimeout(0.1)
    for number in range(600):
        try:
            connection.sendall(b"X-%d: y\r\n" % number)
            if connection.recv(1) == b"":
                return
        except TimeoutError:
            continue
        except OSError:
            return
    pytest.fail("a head without an end was read for a minute")


def test_where_there_are_too_many_connections_the_longest_idle_makes_room(
    serve: Callable[..., tuple[str, Any]], connect: Callable[[str], socket.socket]
) -> None:
    base, _ = serve(timeout_s=600.0, connections=4)
    first = connect(base)
    first.sendall(HALF)
    others = [connect(base) for _ in range(3)]
    for other in others:
        other.sendall(HALF)
    assert httpx.get(f"{base}/livez").status_code == 200
    assert closed(first)
    last = others[-1]
    last.sendall(b"\r\n")
    assert last.recv(12) == b"HTTP/1.1 200", "the one that waited least is answered"


def test_every_line_of_the_log_has_its_instant(
    serve: Callable[..., tuple[str, Any]], store: JobStore, create: Callable[..., str]
) -> None:
    job = create(store)
    base, process = serve()
    assert httpx.post(f"{base}/api/v1/jobs/{job}/cancel").status_code == 202
    process.terminate()
    _, error = process.communicate(timeout=30)
    lines = error.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [A-Z]+ ", line) for line in lines)
    assert [line.split(" ", 2)[2] for line in lines if "cancel" in line] == [
        f"POST /api/v1/jobs/{job}/cancel from 127.0.0.1: 202"
    ]


def closed(connection: socket.socket) -> bool:
    """Whether the other end closes a connection, after an answer or without."""
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True
