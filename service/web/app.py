"""The job status service over HTTP: reads records, asks jobs to stop, needs no torch."""

import logging
import socket
from datetime import UTC, datetime
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response
from fastapi.middleware.gzip import GZipMiddleware

from service.jobs import Periods
from service.records.connections.database import default_url
from service.records.job_store import JobStore, open_store
from service.web.answer_models import HealthAnswer
from service.web.connections import BoundedProtocol
from service.web.guard import Guard
from service.web.pages import add_pages
from service.web.problem import answer_problems, problem_responses
from service.web.prometheus import CONTENT_TYPE, Traffic, exposition
from service.web.routes import ANY_REQUEST, job_routes
from service.web.security import Access, AccessRefusedError, access_to

_log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 131_072
"""Where the server itself gives up on a request's head; the service refuses one far smaller."""
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "timed": {
            "()": "service.web.app.UtcFormatter",
            "format": "%(asctime)s %(levelname)s %(message)s",
        }
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "timed"}},
    "loggers": {
        name: {"handlers": ["stderr"], "level": "INFO", "propagate": False}
        for name in ("uvicorn", "service")
    },
}
"""What uvicorn and the service log, on stderr."""


class UtcFormatter(logging.Formatter):
    """Begins each line with its instant in UTC, wherever the service runs."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """Return when a line was logged, to the second."""
        return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def create_app(
    url: str | None = None, *, periods: Periods | None = None, access: Access | None = None
) -> FastAPI:
    """Return the service that reads the records at `url` (RETORT_DB or the default file if None).

    Raises:
        DatabaseRefusedError: the URL names neither SQLite nor PostgreSQL, or a driver is missing.
    """
    store = open_store(default_url() if url is None else url)
    traffic = Traffic()
    periods = Periods() if periods is None else periods
    # no docs pages: they load scripts from elsewhere
    app = FastAPI(title="Retort", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.traffic = traffic
    app.state.database = store.database_name
    answer_problems(app)
    app.include_router(job_routes(store, periods))
    _add_health(app, store)
    _add_metrics(app, store, periods, traffic)
    add_pages(app)
    app.add_middleware(GZipMiddleware, minimum_size=500, compresslevel=5)
    app.add_middleware(Guard, access=Access() if access is None else access, traffic=traffic)
    return app


def serve(
    host: str = "127.0.0.1",
    port: int = 8000,
    url: str | None = None,
    *,
    token_file: Path | None = None,
    read_token_file: Path | None = None,
    allowed_hosts: tuple[str, ...] = (),
    public_url: str | None = None,
) -> None:
    """Serve the records at `url` until SIGINT or SIGTERM; port 0 takes a free one.

    Raises:
        AccessRefusedError: the address cannot be listened on, or only with a token.
        DatabaseRefusedError: as `create_app`.
    """
    access = access_to(
        host, allowed_hosts, token_file, read_token_file=read_token_file, public_url=public_url
    )
    app = create_app(url, access=access)
    with _listening(host, port) as listening:
        config = uvicorn.Config(
            app,
            http=BoundedProtocol,
            ws="none",
            log_config=LOGGING,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            h11_max_incomplete_event_size=MAX_REQUEST_BYTES,
            timeout_graceful_shutdown=10,
        )
        bound = listening.getsockname()[:2]
        shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
        logging.getLogger("uvicorn.error").info("jobs on http://%s:%d", shown, bound[1])
        logging.getLogger("uvicorn.error").info("records of jobs in %s", app.state.database)
        uvicorn.Server(config).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens, or say why there is none before anything is started."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        listening = socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        raise AccessRefusedError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}: choose another "
            "--port or --host, or stop what listens there"
        ) from error
    # Connections inherit it. asyncio sets it only where the socket names its protocol, and
    # without it every answer waits 40 ms for the reader's delayed acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _add_health(app: FastAPI, store: JobStore) -> None:
    @app.get("/livez", responses=problem_responses(413, 431, 500), tags=["health"])
    async def livez() -> HealthAnswer:
        """That the service lives; the database is not touched."""
        return HealthAnswer(status="alive")

    @app.get("/readyz", responses=problem_responses(413, 431, 500, 503), tags=["health"])
    def readyz() -> HealthAnswer:
        """That records can be read and are of this Retort's schema."""
        store.check()
        return HealthAnswer(status="ready")


def _add_metrics(app: FastAPI, store: JobStore, periods: Periods, traffic: Traffic) -> None:
    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {}}}, **problem_responses(*ANY_REQUEST)},
        tags=["health"],
    )
    def metrics() -> Response:
        """What Prometheus scrapes."""
        return Response(exposition(store, periods, traffic), media_type=CONTENT_TYPE)
