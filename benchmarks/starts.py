"""What commands that only look cost: processor seconds of the whole process, the least of seven.

    python -m benchmarks.starts

A cache of 2,000 made-up records and one job are made for it. Expected: `--help` in 0.3 s, the
others in 0.7.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.machine import describe, versions_of
from benchmarks.records import cache_of, fill, simulated
from service.recording.recorder import record_job
from service.records.connections.database import sqlite_url

PROGRAM = Path(__file__).parents[1] / "cli.py"
RUNS = 7
EXPECTED_S = {"--help": 0.3, "inspect-cache": 0.7, "verify-cache": 0.7, "jobs ls": 0.7}


def processor_s(arguments: list[str], environment: dict[str, str]) -> float:
    """Processor seconds of one run, its children's included."""
    command = [sys.executable, str(PROGRAM), *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return used.ru_utime + used.ru_stime


def main() -> None:
    print(f"{describe()}, {versions_of('typer', 'sqlalchemy')}")
    with TemporaryDirectory() as name:
        folder = Path(name)
        records = simulated(2_000, k=10)
        fill(cache_of(folder / "cache", records), records)
        environment = {**os.environ, "RETORT_DB": sqlite_url(folder / "jobs.db")}
        with record_job(environment["RETORT_DB"], kind="train-student", unit="steps") as job:
            job.progress(1, 1, {"loss": 1.0})
        for command, expected_s in EXPECTED_S.items():
            cache = [str(folder / "cache")] if command.endswith("-cache") else []
            arguments = [*command.split(), *cache]
            least_s = min(processor_s(arguments, environment) for _ in range(RUNS))
            print(f"  {command:14} {least_s:6.3f} s, expected {expected_s}", flush=True)


if __name__ == "__main__":
    main()
