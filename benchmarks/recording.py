"""What recording a job costs its training step: with a record, with none, with a locked database.

    python -m benchmarks.recording [STEPS]

A small network's step of about 10 ms, one thread, reported after every step with metrics, which is
more often than `train-student` measures. The three take turns in blocks of steps. Expected: within
1% of no record.
"""

import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import torch

from benchmarks.machine import describe
from service.recording.recorder import Recorder, record_job
from service.records.connections.database import open_database, sqlite_url

BLOCK = 20


def main(steps: int = 2000) -> None:
    torch.set_num_threads(1)
    network = torch.nn.Sequential(
        torch.nn.Linear(1024, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 1024)
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    images_BC = torch.randn(128, 1024)

    def step() -> float:
        optimizer.zero_grad()
        loss = network(images_BC).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    with tempfile.TemporaryDirectory() as folder:
        free, locked = Path(folder) / "free.db", Path(folder) / "locked.db"
        open_database(sqlite_url(locked)).prepare()
        with closing(sqlite3.connect(locked, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            contestants: dict[str, Recorder | None] = {
                "no record": None,
                "recorded": record_job(sqlite_url(free), kind="benchmark", unit="steps"),
                "locked database": record_job(sqlite_url(locked), kind="benchmark", unit="steps"),
            }
            seconds: dict[str, list[float]] = {name: [] for name in contestants}
            calls: list[float] = []
            for block in range(steps // BLOCK + 1):
                for name, recorder in contestants.items():
                    for number in range(BLOCK):
                        began_s = time.perf_counter()
                        loss = step()
                        if recorder is not None:
                            called_s = time.perf_counter()
                            done = block * BLOCK + number
                            recorder.progress(done, steps, {"loss": loss, "ce": loss, "kd": loss})
                            calls.append(time.perf_counter() - called_s)
                        if block:
                            seconds[name].append(time.perf_counter() - began_s)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"recording: {steps} steps each, in turns of {BLOCK}")
    for name, value in medians.items():
        print(f"  {name.ljust(16)} {1000 * value:8.3f} ms  {value / medians['no record']:6.4f}")
    print(f"  the call itself: median {1e6 * statistics.median(calls):.1f} us")


if __name__ == "__main__":
    print(describe())
    main(*map(int, sys.argv[1:]))
