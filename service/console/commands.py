"""`cli.py jobs`: list, show, watch and cancel jobs, by their records or through a service."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from service.console.job_source import JobSource

jobs_app = typer.Typer(
    help="What jobs are doing: from their records (RETORT_DB), or from a service with --url.",
    no_args_is_help=True,
)

JobArgument = Annotated[
    str, typer.Argument(metavar="ID", help="A job's id, or enough of its beginning.")
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", envvar="RETORT_URL", help="A service, as http://HOST:8000."),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option("--token-file", envvar="RETORT_TOKEN_FILE", help="What that service asks for."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
STATES = Literal[
    "pending", "running", "cancelling", "succeeded", "failed", "cancelled", "stale", "crashed"
]


@jobs_app.command("ls")
def list_jobs(
    state: Annotated[STATES | None, typer.Option(help="Only jobs that read so.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only cache-teacher, or train-student.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many, newest first.")] = 20,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first: state, progress, rate, time left, age of the heartbeat."""
    from service.console.job_text import job_table, no_jobs

    filtered = state is not None or kind is not None

    with _source(url, token_file) as source:
        page = source.jobs(status=state, kind=kind, limit=limit)
    _print(
        page,
        as_json=as_json,
        text=lambda: job_table(page["jobs"]) or no_jobs(source.where, filtered=filtered),
    )


@jobs_app.command("show")
def show_job(
    job: JobArgument,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one job in full: progress, ranks, events, log, config, environment, artifacts."""
    from service.console.job_source import resolve
    from service.console.job_text import job_page

    with _source(url, token_file) as source:
        found = resolve(source, job)
        facts: dict[str, Any] = {
            "job": source.job(found),
            "ranks": source.ranks(found),
            "events": source.events(found),
            "log": source.log(found),
        }
    _print(facts, as_json=as_json, text=lambda: job_page(**facts))


@jobs_app.command("watch")
def watch_job(
    job: JobArgument,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    crashed_s: Annotated[
        float, typer.Option(min=0, help="Give up on a job that has read as crashed for so long.")
    ] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON a change.")] = False,
) -> None:
    """Follow a job to its end; exit 0 if it succeeded, 10 failed, 11 crashed, 12 cancelled.

    Ctrl-C only detaches: the job goes on.
    """
    from service.console.job_source import resolve
    from service.console.watch import watch

    with _source(url, token_file) as source:
        found = resolve(source, job)
        raise typer.Exit(watch(source, found, crashed_s=crashed_s, as_json=as_json))


@jobs_app.command("cancel")
def cancel_job(
    job: JobArgument,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a job to stop after its step or block and to save; the same command continues it."""
    from service.console.job_source import resolve

    with _source(url, token_file) as source:
        row = source.cancel(resolve(source, job))
    _print(row, as_json=as_json, text=lambda: f"job {row['id']} is {row['status']}")


@contextmanager
def _source(url: str | None, token_file: Path | None) -> Iterator["JobSource"]:
    """Yield where to ask; what it cannot answer is one line on stderr and exit code 1."""
    from service.console.job_source import HttpJobs, JobSourceError
    from service.console.stored_jobs import StoredJobs
    from service.records.database import StoreError
    from service.web.security import AccessRefusedError, read_token

    try:
        if url is None:
            yield StoredJobs()
        else:
            yield HttpJobs(url, read_token(token_file))
    except (JobSourceError, StoreError, AccessRefusedError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


def _print(facts: Any, *, as_json: bool, text: Any) -> None:
    typer.echo(json.dumps(facts, indent=1) if as_json else text())
