"""`cli.py jobs`, on real records: from the database and through a real service."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_service import live_service
from repository import REPOSITORY
from sqlalchemy import text

from cli import main
from service.console.job_source import HttpJobs, JobSourceError, resolve
from service.jobs import State, job_id
from service.records.job_store import JobStore, open_store
from service.records.rank_rows import Rank

TOKEN = "a-token-of-thirty-two-bytes-or-more"
# what training needs and the service's image has not
ABSENT = ("torch", "torchvision", "timm", "zarr", "numcodecs", "numpy", "PIL", "safetensors")
JOBS = f"""
import signal, sys
# as in a terminal: a shell's background job, such as these tests may be, ignores Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.modules.update(dict.fromkeys({ABSENT}, None))
sys.path.insert(0, {str(REPOSITORY)!r})
sys.argv = ["cli.py", "jobs", *sys.argv[1:]]
import cli
cli.main()
"""


@pytest.fixture
def jobs(url: str, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `cli.py jobs ...` where nothing of training can be imported."""
    started = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", JOBS, *arguments],
            cwd=tmp_path,
            env=os.environ | {"RETORT_DB": url} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def said(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `cli.py jobs ...` in this process: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code: Any = 0
        with monkeypatch.context() as patch:
            for name, value in ({"RETORT_DB": url} | environment).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["cli.py", "jobs", *arguments])
            try:
                main()
            except SystemExit as end:
                code = end.code or 0
        return code, *capfd.readouterr()

    return run


def create(store: JobStore, number: int = 1) -> str:
    job = job_id(number, bytes(10))
    more: dict[str, Any] = {"config": {"epochs": 3}, "environment": {"torch": "2.15.0"}}
    more |= {"target": "run"}
    store.create(job, kind="train-student", unit="steps", host="gpu-1", pid=7, **more)
    return job


def run(store: JobStore, job: str) -> None:
    store.transition(job, State.RUNNING)
    more: dict[str, Any] = {"rate": 2.0, "eta_s": 30.0, "metrics": {"loss": 0.5}}
    store.update(job, done=40, total=100, resumed=10, **more)


def test_the_records_and_a_service_say_the_same(
    store: JobStore, url: str, file: Path, said: Callable[..., tuple[int, str, str]]
) -> None:
    job = create(store)
    run(store, job)
    for rank in (0, 1):
        store.beat_rank("run", 0, Rank(rank, "gpu-1", 7 + rank, State.RUNNING, 20 + rank))
    with live_service(url) as base:
        for command in (["ls"], ["show", job[:14]]):
            stored, served = (
                json.loads(said(*command, "--json", *more)[1]) for more in ((), ("--url", base))
            )
            aged = r'"(heartbeat|progress)_age_s": [\d.e-]+'
            same = [re.sub(aged, "", json.dumps(answer)) for answer in (stored, served)]
            assert same[0] == same[1]
            assert "progress_age_s" in json.dumps(stored)
    code, out, _ = said("ls")
    assert code == 0
    assert re.search(r"train-student  running +40%  +40/100 steps  2.0/s  0:30  +\d+ s ago", out)
    out = said("show", job)[1]
    for words in ("train-student", "40/100 steps", "loss 0.5", "gpu-1, pid 8", "torch  2.15.0"):
        assert words in out
    code, out, _ = said("ls", "--state", "failed")
    assert (code, out.split(" (")[0]) == (0, f"no job matches in the database {file}")


def test_it_runs_where_nothing_of_training_is_installed(
    store: JobStore, jobs: Callable[..., subprocess.Popen[str]]
) -> None:
    job = create(store)
    process = jobs("ls")
    out, error = process.communicate(timeout=900)
    assert (process.returncode, error) == (0, "")
    assert job[:12] in out


def test_an_id_may_be_cut_as_long_as_it_is_one(
    store: JobStore, said: Callable[..., tuple[int, str, str]]
) -> None:
    first, second = create(store, 0x1111), create(store, 0x1112)
    assert json.loads(said("show", first[:12], "--json")[1])["job"]["id"] == first
    code, _, error = said("show", first[:11])
    assert (code, error.count("\n")) == (1, 1)
    assert f"is the beginning of several ids, give more: {second}, {first}\n" in error
    assert "expected a job's id or its beginning" in said("show", "f")[2]
    assert "expected a job's id" in said("show", "f" * 32)[2]


def test_a_beginning_is_looked_for_among_all_jobs(store: JobStore, url: str) -> None:
    jobs = [create(store, number) for number in range(1, 204)]
    with live_service(url) as base:
        assert resolve(HttpJobs(base), jobs[0][:12]) == jobs[0]
        with pytest.raises(JobSourceError, match="is the beginning of several ids, .*, \\.\\.\\.$"):
            resolve(HttpJobs(base), "0000")


@pytest.mark.parametrize(
    ("end", "code"), [(State.SUCCEEDED, 0), (State.FAILED, 10), (State.CANCELLED, 12)]
)
def test_watch_ends_as_the_job_does(
    end: State, code: int, store: JobStore, jobs: Callable[..., subprocess.Popen[str]]
) -> None:
    job = create(store)
    run(store, job)
    watching = jobs("watch", job)
    assert watching.stderr is not None
    assert "running" in watching.stderr.readline()
    store.update(job, done=90, total=100, resumed=10, rate=2.0, eta_s=5.0, metrics={"loss": 0.25})
    if end is State.CANCELLED:
        store.request_cancel(job)
    store.transition(job, end, "as it was told")
    out, error = watching.communicate(timeout=900)
    assert (watching.returncode, out) == (code, "")
    assert f"train-student {job} {end}: " in error


def test_watch_gives_up_on_a_job_that_has_read_as_crashed_for_a_minute(
    store: JobStore, url: str, said: Callable[..., tuple[int, str, str]]
) -> None:
    job = create(store)
    run(store, job)
    age(url, 200.0)
    code, _, error = said("watch", job)
    assert code == 11
    assert "crashed: no heartbeat for 3 min" in error


def test_watch_waits_for_a_job_that_has_just_begun_to_read_as_crashed(
    store: JobStore, url: str, jobs: Callable[..., subprocess.Popen[str]]
) -> None:
    job = create(store)
    run(store, job)
    age(url, 130.0)
    watching = jobs("watch", job)
    assert watching.stderr is not None
    assert "crashed" in watching.stderr.readline()
    time.sleep(0.5)
    assert watching.poll() is None, "60 s of reading as crashed have not passed"
    hurried = jobs("watch", job, "--crashed-s", "5")
    assert hurried.wait(timeout=30) == 11


def test_ctrl_c_detaches_and_the_job_goes_on(
    store: JobStore, jobs: Callable[..., subprocess.Popen[str]]
) -> None:
    job = create(store)
    run(store, job)
    watching = jobs("watch", job)
    assert watching.stderr is not None
    watching.stderr.readline()
    watching.send_signal(signal.SIGINT)
    assert watching.wait(timeout=30) == 130
    assert f"detached; job {job} goes on" in watching.stderr.read()
    found = store.get(job)
    assert found is not None
    assert found.record.state is State.RUNNING


@pytest.mark.slow
def test_watch_outlives_the_service_that_it_asks(
    store: JobStore, url: str, jobs: Callable[..., subprocess.Popen[str]]
) -> None:
    job = create(store)
    run(store, job)
    with live_service(url) as base:
        watching = jobs("watch", job, "--url", base)
        assert watching.stderr is not None
        assert "running" in watching.stderr.readline()
    assert "asking again every 5 s" in watching.stderr.readline()
    store.transition(job, State.SUCCEEDED)
    with live_service(url, port=int(base.rsplit(":", 1)[1])):
        assert watching.wait(timeout=30) == 0


def test_cancel_asks_once_and_says_when_it_is_too_late(
    store: JobStore, url: str, said: Callable[..., tuple[int, str, str]]
) -> None:
    first, second = create(store, 1), create(store, 2)
    for job in (first, second):
        run(store, job)
    assert said("cancel", first) == (0, f"job {first} is cancelling\n", "")
    assert said("cancel", first)[0] == 0, "asking twice is asking once"
    with live_service(url) as base:
        assert (
            json.loads(said("cancel", second, "--url", base, "--json")[1])["state"] == "cancelling"
        )
        store.transition(second, State.CANCELLED)
        code, _, error = said("cancel", second, "--url", base)
        assert (code, error) == (1, f"error: {base}: the job has ended: it is cancelled (409)\n")
    assert said("cancel", second)[0] == 1
    states = {job: open_store(url).get(job) for job in (first, second)}
    assert [found and found.record.state for found in states.values()] == [
        "cancelling",
        "cancelled",
    ]


def test_a_token_is_read_from_a_file_or_the_environment(
    store: JobStore, url: str, tmp_path: Path, said: Callable[..., tuple[int, str, str]]
) -> None:
    job = create(store)
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    with live_service(url, token=TOKEN) as base:
        code, _, error = said("ls", "--url", base)
        assert code == 1
        assert "asks for a token: pass --token-file FILE, or set RETORT_TOKEN" in error
        for more, environment in (
            (("--token-file", str(file)), {}),
            ((), {"RETORT_TOKEN_FILE": str(file)}),
            ((), {"RETORT_TOKEN": TOKEN}),
        ):
            code, out, _ = said("ls", "--url", base, *more, **environment)
            assert (code, job[:12] in out) == (0, True)
        assert "expected a token of 32" in said("ls", "--url", base, RETORT_TOKEN="short")[2]


def test_what_is_no_service_is_said_to_be_none(said: Callable[..., tuple[int, str, str]]) -> None:
    code, _, error = said("ls", "--url", "http://127.0.0.1:1")
    assert code == 1
    assert "is 'cli.py serve' running there?" in error
    assert "expected http://HOST:PORT" in said("ls", "--url", "file:///etc/passwd")[2]
    assert "expected sqlite:" in said("ls", RETORT_DB="gopher:x")[2]


def age(url: str, seconds: float) -> None:
    """Make every heartbeat older, as time would."""
    with open_store(url)._database.writing() as connection:
        connection.execute(text(f"UPDATE jobs SET heartbeat = heartbeat - {seconds}"))
