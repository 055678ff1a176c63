"""How fast the job status service answers from SQLite, on one core, while a job writes.

    python -m benchmarks.service

The service has a core of its own where there are two; the client is bare sockets that stay open.
Expected: job detail at 1,000 requests/s or more, its p99 below 50 ms at 200 requests/s, a list of
50 of 3,000 jobs and `/metrics` of them below 20 ms, a metric of 100,000 points below 60 ms.
"""

import asyncio
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from service.jobs import State, job_id
from service.records.connections.database import sqlite_url
from service.records.job_store import open_store
from service.records.series import Point

CONNECTIONS = 8
POINTS = 100_000
JOBS = 3_000
SERVE = "import sys; from service.web.app import serve; serve(port=0, url=sys.argv[1])"
WRITE = """
import sys, time
from service.recording.outbox import Pace
from service.recording.recorder import record_job
pace = Pace(write_s=0.05)
with record_job(sys.argv[1], kind="train-student", unit="steps", pace=pace) as job:
    print(job.job_id, flush=True)
    for step in range(10**9):
        job.progress(step, 10**9, {"loss": 1.0, "ce": 1.0, "kd": 1.0})
        time.sleep(0.01)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "jobs.db"
        url = sqlite_url(file)
        many = fill(url, file)
        with running(WRITE, url) as writer, running(SERVE, url, own_core=True) as server:
            job = writer.stdout.readline().strip()
            port = int(server.stderr.readline().rsplit(":", 1)[1])
            asyncio.run(measure(port, job, many, server.pid))


async def measure(port: int, job: str, many: str, server: int) -> None:
    detail = f"/api/v1/jobs/{job}"
    await closed_loop(port, detail, 500)
    busy_s = cpu_s(server)
    rates = [await closed_loop(port, detail, 3000) for _ in range(3)]
    each_ms = 1000 * (cpu_s(server) - busy_s) / 9000
    print(
        f"  job detail, {CONNECTIONS} connections      {statistics.median(rates):7.0f} requests/s"
    )
    print(f"  by its CPU time, {each_ms:.2f} ms each  {1000 / each_ms:7.0f} requests/s")
    delays = await open_loop(port, detail, per_s=200, seconds=10)
    shown = (statistics.median(delays), delays[int(0.99 * len(delays))], delays[-1])
    print(
        "  the same at 200 requests/s       p50 {:.1f}, p99 {:.1f}, worst {:.1f} ms".format(*shown)
    )
    series = f"/api/v1/jobs/{many}/metrics?name=loss&points=500"
    (first_ms,) = await one_by_one(port, series, count=1)
    print(f"  metric of {POINTS:,} points, first   {first_ms:7.1f} ms")
    for name, path in (
        (f"list of 50 of {JOBS:,} jobs", "/api/v1/jobs?limit=50"),
        (f"/metrics of {JOBS:,} jobs", "/metrics"),
        (f"metric of {POINTS:,} points again", series),
    ):
        busy_s = cpu_s(server)
        await one_by_one(port, path, count=1)
        milliseconds = statistics.median(await one_by_one(port, path, count=20))
        each_ms = 1000 * (cpu_s(server) - busy_s) / 21
        print(f"  {name.ljust(34)} {milliseconds:7.1f} ms, {each_ms:.1f} of them CPU time")


def fill(url: str, file: Path) -> str:
    """Record 3,000 jobs, the first with a long metric; return its id."""
    store = open_store(url)
    store.prepare()
    first = job_id(1, bytes(10))
    config = {f"section.key{i}": i for i in range(20)}
    store.create(first, kind="train-student", unit="steps", host="h", pid=1, config=config)
    store.transition(first, State.RUNNING)
    metrics = {f"m{i}": 0.5 for i in range(8)}
    store.update(first, done=1, total=2, resumed=0, rate=None, eta_s=None, metrics=metrics)
    with closing(sqlite3.connect(file)) as connection, connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(jobs)")]
        others = ", ".join(name for name in names if name != "id")
        connection.executemany(
            f"INSERT INTO jobs (id, {others}) SELECT ?, {others} FROM jobs WHERE id = ?",
            [(job_id(number, bytes(10)), first) for number in range(2, JOBS + 1)],
        )
    for name in ("loss", "ce", "kd"):
        points = [Point(name, step, 1 / (1 + step)) for step in range(POINTS)]
        store.heartbeat(first, points=points)
    return first


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used: on a shared machine what tells its cost."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(script: str, url: str, *, own_core: bool = False) -> Iterator[subprocess.Popen[str]]:
    cores = sorted(os.sched_getaffinity(0))
    process = subprocess.Popen(
        [sys.executable, "-c", script, url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if own_core else None,
        text=True,
    )
    # the client and the writer share what is left
    os.sched_setaffinity(process.pid, cores[-1:] if own_core else cores[:1])
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def ask(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], path: str) -> float:
    """Seconds from the request to the last byte of its answer."""
    reader, writer = connection
    began_s = time.perf_counter()
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        sys.exit(f"{path}: {head!r}")
    await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
    return time.perf_counter() - began_s


async def closed_loop(port: int, path: str, count: int) -> float:
    """Requests a second, each connection asking as soon as it is answered."""

    async def one() -> None:
        connection = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(count // CONNECTIONS):
            await ask(connection, path)
        connection[1].close()

    began_s = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return count / (time.perf_counter() - began_s)


async def open_loop(port: int, path: str, *, per_s: int, seconds: int) -> list[float]:
    """Milliseconds of each request, sorted, sent on a schedule whatever the answers take."""
    began_s = time.perf_counter()

    async def one(number: int) -> list[float]:
        connection = await asyncio.open_connection("127.0.0.1", port)
        delays = []
        for i in range(number, per_s * seconds, CONNECTIONS):
            due_s = began_s + i / per_s
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            await ask(connection, path)
            delays.append(1000 * (time.perf_counter() - due_s))
        connection[1].close()
        return delays

    found = await asyncio.gather(*(one(number) for number in range(CONNECTIONS)))
    return sorted(delay for delays in found for delay in delays)


async def one_by_one(port: int, path: str, *, count: int) -> list[float]:
    """Milliseconds of each request, one after the other."""
    connection = await asyncio.open_connection("127.0.0.1", port)
    seconds = [await ask(connection, path) for _ in range(count)]
    connection[1].close()
    return [1000 * each for each in seconds]


if __name__ == "__main__":
    from benchmarks.machine import describe

    print(describe())
    print("service: SQLite, one core, a job that writes 20 times a second beside it")
    main()
