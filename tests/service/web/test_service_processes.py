"""Real services and writers in processes of their own: killed, two at once, asked rudely."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.jobs import JobRecord, State
from service.records.connections.database import sqlite_url
from service.records.job_store import open_store
from service.web.app import _listening

SERVE = "import sys; from service.web.app import serve; serve(port=0, url=sys.argv[1])"
JOB = """
    import sys, time
    from service.recording.recorder import record_job
    from service.recording.outbox import Pace

    pace = Pace(write_s=0.05, heartbeat_s=0.1)
    rank = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with record_job(
        sys.argv[1], kind="train-student", unit="steps", pace=pace, out="run", rank=rank
    ) as recorder:
        print(recorder.job_id, flush=True)
        for step in range(10**6):
            recorder.progress(step, 10**6, {"loss": 1 / (1 + step)})
            if recorder.cancel_requested:
                recorder.finish("cancelled", "saved")
                break
            time.sleep(0.01)
"""


@pytest.fixture
def serve(start_python: Callable[..., Any]) -> Callable[[str], tuple[Any, str]]:
    """Start a service; returns its process and its URL."""

    def start(url: str) -> tuple[Any, str]:
        process = start_python(SERVE, url)
        for line in process.stderr:
            if "jobs on " in line:
                return process, line.split("jobs on ")[1].strip()
        pytest.fail("the service did not start")

    return start


def test_a_request_over_http_stops_every_rank_of_a_running_job(
    url: str,
    serve: Callable[[str], tuple[Any, str]],
    start_python: Callable[..., Any],
    eventually: Callable[..., None],
) -> None:
    first = start_python(JOB, url)
    job = first.stdout.readline().strip()
    second = start_python(JOB, url, "1")
    _, base = serve(url)
    with httpx.Client(base_url=f"{base}/api/v1/jobs/") as client:
        eventually(lambda: len(client.get(f"{job}/ranks").json().get("ranks", ())) == 2, 20.0)
        assert client.post(f"{job}/cancel").status_code == 202
        for process in (first, second):
            _, errors = process.communicate(timeout=20)
            assert (process.returncode, errors) == (0, "")
        body = client.get(job).json()
        assert (body["state"], body["reason"]) == ("cancelled", "saved")
        ranks = client.get(f"{job}/ranks").json()["ranks"]
        assert [(r["rank"], r["state"], r["pid"]) for r in ranks] == [
            (0, "cancelled", first.pid),
            (1, "cancelled", second.pid),
        ]
        assert client.post(f"{job}/cancel").status_code == 409
        names = client.get(f"{job}/metrics").json()["names"]
        assert [name["name"] for name in names] == ["loss"]
        assert names[0]["last_step"] == body["progress"]["done"]


@pytest.mark.kill
def test_a_service_that_is_killed_costs_jobs_and_other_services_nothing(
    url: str,
    serve: Callable[[str], tuple[Any, str]],
    start_python: Callable[..., Any],
    read_surely: Callable[..., JobRecord],
    eventually: Callable[..., None],
) -> None:
    process = start_python(JOB, url)
    job = process.stdout.readline().strip()
    (one, _), (_, base) = serve(url), serve(url)
    one.send_signal(signal.SIGKILL)
    one.wait()
    eventually(lambda: httpx.get(f"{base}/api/v1/jobs/{job}").status_code == 200)
    before = read_surely(url, job).done
    eventually(lambda: read_surely(url, job).done > before)
    assert process.poll() is None


WRITER = """
    import sys
    from service.records.connections.database import DatabaseError
    from service.records.series import Point
    from service.records.job_store import open_store

    store, job, writer = open_store(sys.argv[1]), sys.argv[2], sys.argv[3]
    step = int(sys.argv[4])
    while True:
        step += 1
        store.heartbeat(job, points=[Point(f"w{writer}", step, float(step))])
        print(step, flush=True)  # acknowledged
"""


@pytest.mark.kill
def test_of_eight_writers_killed_over_and_over_no_acknowledged_write_is_lost(
    url: str,
    store: Any,
    create: Callable[..., str],
    start_python: Callable[..., Any],
    file: Path,
) -> None:
    job = create(store)
    acknowledged = dict.fromkeys(range(8), 0)

    def storm(writer: int) -> int:
        process = start_python(WRITER, url, job, str(writer), str(acknowledged[writer]))
        seen = [process.stdout.readline() for _ in range(4)]
        process.send_signal(signal.SIGKILL)
        rest = process.communicate()[0]
        whole = ("".join(seen) + rest).split("\n")[:-1]
        return int(whole[-1])

    for _ in range(2):
        with ThreadPoolExecutor(8) as pool:
            acknowledged.update(enumerate(pool.map(storm, range(8))))
    names = {series.name: series for series in store.metric_names(job)}
    for writer, steps in acknowledged.items():
        (series,) = store.metrics(job, [f"w{writer}"], 2000)
        assert steps >= 8
        assert list(series.steps)[:steps] == list(range(1, steps + 1))
        assert names[f"w{writer}"].points >= steps


def raw(base: str, data: bytes) -> bytes:
    """Send bytes, return the whole answer."""
    host, port = base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        while b"\r\n\r\n" not in answer or not answer.split(b"\r\n\r\n", 1)[1]:
            received = connection.recv(65536)
            if not received:
                break
            answer += received
    return answer


def test_rude_requests_are_answered_as_problems(
    url: str, serve: Callable[[str], tuple[Any, str]]
) -> None:
    _, base = serve(url)

    def get(path: str, *headers: str) -> bytes:
        lines = [f"GET {path} HTTP/1.1", *(headers or ("Host: 127.0.0.1",)), "", ""]
        return raw(base, "\r\n".join(lines).encode("latin-1"))

    for answer, status in (
        (get("/metrics", "Host: evil.example"), 400),
        (get("/livez", "Host: 127.0.0.1", "X: " + "y" * 70_000), 431),
        (get("/api/v1/jobs/" + "a" * 60_000), 404),
        (get("/api/v1/jobs/%00"), 404),
        (get("/api/v1/jobs/..%2f..%2fetc%2fpasswd/events"), 404),
        (get("/api/v1/jobs/'%20OR%201=1--/ranks"), 404),
        (get("/api/v1/jobs?limit=" + "9" * 30), 422),
        (get("/api/v1/jobs?limit=-1"), 422),
        (get("/api/v1/jobs/x/metrics?name=%00&points=-5"), 422),
        (get("/api/v1/jobs/x/events?after=" + "9" * 30), 422),
        (get("/nothing"), 404),
        (raw(base, b"DELETE /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"), 405),
        (
            raw(base, b"POST /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999\r\n\r\n"),
            413,
        ),
    ):
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode()), (status, answer[:300])
        assert b"content-type: application/problem+json" in head
        assert b'"request_id":"' in body
        assert len(answer) < 2000
    assert raw(base, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert get("/livez").startswith(b"HTTP/1.1 200")


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A disk of 1 MB, where this machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_on_a_full_disk_jobs_are_read_and_nothing_can_be_asked_of_them(
    small_disk: Path,
    serve: Callable[[str], tuple[Any, str]],
    create: Callable[..., str],
    record: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    warnings_of: Callable[..., list[str]],
) -> None:
    url = sqlite_url(small_disk / "jobs.db")
    store = open_store(url)
    store.prepare()
    job = create(store)
    store.transition(job, State.RUNNING)
    _, base = serve(url)
    assert httpx.get(f"{base}/api/v1/jobs/{job}").status_code == 200
    with (small_disk / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(os.statvfs(small_disk).f_bsize))
        except OSError:
            pass
    refused = httpx.post(f"{base}/api/v1/jobs/{job}/cancel")
    assert (refused.status_code, refused.json()["status"]) == (503, 503)
    assert httpx.get(f"{base}/api/v1/jobs/{job}").json()["state"] == "running"
    with record(url) as recorder:  # a job goes on
        for step in range(50):
            recorder.progress(step, 50, {"loss": 1.0})
    assert len(warnings_of(caplog)) == 1
    (small_disk / "filler").unlink()
    assert httpx.post(f"{base}/api/v1/jobs/{job}/cancel").status_code == 202


def test_answers_do_not_wait_for_the_readers_acknowledgement() -> None:
    with _listening("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_that_is_taken_is_one_line_and_exit_code_2(process: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = process("serve", "--port", port, check=2)
    assert f"error: cannot listen on 127.0.0.1, port {port}: Address already in use" in done.stderr
    done = process("serve", "--host", "0.0.0.0", check=2)
    assert "without a token" in done.stderr
