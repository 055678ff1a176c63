"""`cli.py jobs`: list, show, watch and cancel jobs, by their records or through a service."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from service.console.job_source import JobSource


class CommandList(TyperGroup):
    """Commands whose `--help` says the whole sentence of each; plain help cuts it short."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by its name."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and command.short_help is None and command.help is not None:
            command.short_help = command.help.partition("\n\n")[0]
        return command


def example(line: str) -> str:
    """Return the end of a command's help: one line as it is typed."""
    return f"Example: cli.py {line}"


jobs_app = typer.Typer(
    cls=CommandList,
    help="What jobs are doing: from their records (RETORT_DB), or from a service with --url.",
    epilog=example("jobs ls"),
    no_args_is_help=True,
    rich_markup_mode=None,
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


class Ended(StrEnum):
    """How a job may have ended, as its status says."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    CRASHED = "crashed"


STATES = Literal[
    "pending", "running", "cancelling", "succeeded", "failed", "cancelled", "stale", "crashed"
]


@jobs_app.command("ls", epilog=example("jobs ls --state running"))
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


@jobs_app.command("show", epilog=example("jobs show 01a1feae6e46"))
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


@jobs_app.command("watch", epilog=example("jobs watch 01a1feae6e46 --url http://gpu-1:8000"))
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


@jobs_app.command("cancel", epilog=example("jobs cancel 01a1feae6e46"))
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


@jobs_app.command("rm", epilog=example("jobs rm 01a1feae6e46"))
def remove_jobs(
    jobs: Annotated[list[str], typer.Argument(metavar="ID...", help="Jobs that have ended.")],
    url: UrlOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Remove the records of jobs that have ended or crashed; their files are left alone."""
    from service.console.job_source import resolve

    with _source(url, token_file) as source:
        for found in [resolve(source, job) for job in jobs]:  # all are known before one is removed
            source.remove(found)
            typer.echo(f"removed {found}")


@jobs_app.command("prune", epilog=example("jobs prune --older-than 30d --state crashed"))
def prune_jobs(
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Since their last sign of life: 30d, 12h, 90m.")
    ],
    state: Annotated[
        list[Ended] | None, typer.Option(help="Only jobs that ended so; repeatable; none: all.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which these are.")] = False,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Remove the records of old jobs that have ended or crashed; their files are left alone."""
    from service.console.housekeeping import age_s, old_jobs

    with _source(url, token_file) as source:
        found = old_jobs(source, age_s(older_than), state or list(Ended))
        for row in found:
            if not dry_run:
                source.remove(row["id"])
            typer.echo(f"{'would remove' if dry_run else 'removed'} {row['id']} ({row['status']})")
    typer.echo(f"{len(found)} jobs")


@jobs_app.command("export", epilog=example("jobs export 01a1feae6e46 --out job.jsonl"))
def export_jobs(
    jobs: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Which; none: all of them.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; none: stdout.")] = None,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
) -> None:
    """Write jobs with ranks, events and metrics as JSON, a line each, oldest first."""
    from service.console.housekeeping import all_jobs, whole_job
    from service.console.job_source import resolve

    with _source(url, token_file) as source:
        found = [resolve(source, job) for job in jobs or ()]
        found = found or [row["id"] for row in reversed(list(all_jobs(source)))]
        lines = (json.dumps(whole_job(source, job)) for job in found)
        if out is None:
            for line in lines:
                typer.echo(line)
        else:
            partial = out.with_name(f".{out.name}.partial")
            with partial.open("w") as file:
                file.writelines(f"{line}\n" for line in lines)
            partial.replace(out)


@contextmanager
def _source(url: str | None, token_file: Path | None) -> Iterator["JobSource"]:
    """Yield where to ask; what it cannot answer is one line on stderr and exit code 1."""
    from service.console.job_source import HttpJobs, JobSourceError
    from service.console.stored_jobs import StoredJobs
    from service.records.connections.engines import DatabaseError
    from service.web.security import AccessRefusedError, read_token

    try:
        if url is None:
            yield StoredJobs()
        else:
            yield HttpJobs(url, read_token(token_file))
    except (JobSourceError, DatabaseError, AccessRefusedError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


def _print(facts: Any, *, as_json: bool, text: Any) -> None:
    typer.echo(json.dumps(facts, indent=1) if as_json else text())
