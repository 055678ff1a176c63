"""The service in a process of its own, at a free port."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from repository import REPOSITORY

SERVE = """
import json, socket, sys, uvicorn
from service.web.app import create_app
from service.jobs import Periods
from service.web.security import Access
given = json.loads(sys.argv[1])
periods = Periods(given["stale_s"], given["crashed_s"])
app = create_app(given["url"], periods=periods, access=Access(token=given["token"]))
listening = socket.create_server(("127.0.0.1", given["port"]))
print(listening.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off")).run(sockets=[listening])
"""


@contextmanager
def live_service(
    url: str,
    *,
    port: int = 0,
    token: str | None = None,
    stale_s: float = 30.0,
    crashed_s: float = 120.0,
) -> Iterator[str]:
    """Serve the records at `url`; yields where. Killed at the end."""
    given: dict[str, Any] = {"url": url, "port": port, "token": token}
    given |= {"stale_s": stale_s, "crashed_s": crashed_s}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, json.dumps(given)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    with process.stdout:
        line = process.stdout.readline()
        assert line, "the service did not start"
        try:
            yield f"http://127.0.0.1:{int(line)}"
        finally:
            process.kill()
            process.wait()
