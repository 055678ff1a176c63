"""The cache beside the layouts that others store a teacher's answers in, on one core, in one run.

    python -m benchmarks.peers [ROWS] [--records FILE.npz]   (3 minutes at the default 262,144)

All get the same float16 records, simulated ones or those of FILE.npz (`ids` [N, k], `logp` [N, k]
and `tail` [N, 1], of at most 1,000 classes; they are cut to each k that they reach). The layouts
are written and read by `benchmarks.formats`, not by the projects that they come from: where a
project's own reader does more work than its layout asks for, ours does not.

bytes      of every file of a view, over its records
+ index    of what is made once for all views, over the images
write      from arrays in memory to closed files; Retort's are flushed to the disk, too
load       the whole view from a warm page cache into arrays; MDS's are views of the file's bytes
picked     an epoch of batches of 2,048 records in random order: load the view, pick from memory
read       the same as the layout offers it: a seek a record for TinyViT and MDS, a selection for
           HDF5, a load first for the others (DistillKit then unpacks each batch)
TV         total variation between the records and what is read, mean; where a layout has no tail,
           its tail is what the kept classes leave of 1

Readers are opened before the clock starts; what they load, they load under it. Reading is timed in
seconds of this process's threads on the core, not of the clock: from a warm page cache both are the
same on an idle machine, and on a busy one only the clock counts other processes' turns. Writing is
timed by the clock, since it waits for the disk.
"""

import argparse
import os
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.formats.contestants import Contestant, contestants, skipped
from benchmarks.formats.rows import Rows, bytes_below
from benchmarks.machine import describe, versions_of
from benchmarks.records import CLASSES, simulated
from teacher_cache.record import TopK

BATCH = 2_048
KEPT = (10, 20, 50)
PATIENCE_S = 8.0
"""A reader that has not finished its epoch by then is judged by what it has read."""


def total_variation(records: TopK, found: Rows) -> float:
    """Mean over rows of half the summed differences of probabilities, kept classes and tail."""
    kept = np.exp(records.logp_BK.astype(np.float64))
    read = np.exp(found.logp_BK.astype(np.float64))
    tail = np.exp(records.tail_BT[:, 0].astype(np.float64))
    if found.tail_BT is None:
        read_tail = np.maximum(1 - read.sum(1), 0)
    else:
        read_tail = np.exp(found.tail_BT[:, 0].astype(np.float64))
    return float((np.abs(kept - read).sum(1) + np.abs(tail - read_tail)).mean() / 2)


def rates_of_reading(contestant: Contestant, folder: Path, count: int) -> list[float]:
    """Records a second: load the view; the same and pick batches; read batches."""
    order = np.random.default_rng(0).permutation(count)
    batches = [order[at : at + BATCH] for at in range(0, count, BATCH)]
    with contestant.reader(folder) as reader:
        started = time.process_time()
        view = reader.read_all()
        loaded = time.process_time() - started
        for batch in batches:
            view.at(batch)
        picked = time.process_time() - started
    with contestant.reader(folder) as reader:
        started, done = time.process_time(), 0
        for batch in batches:
            reader.read_rows(batch)
            done += len(batch)
            read = time.process_time() - started
            if read > PATIENCE_S:
                break
    return [count / loaded, count / picked, done / read]


def seconds_to_write(contestant: Contestant, folder: Path, records: TopK) -> float:
    """Into a folder that is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    contestant.prepare(folder, records)
    started = time.perf_counter()
    contestant.write(folder, records)
    return time.perf_counter() - started


def measure(contestant: Contestant, folder: Path, records: TopK, runs: int) -> list[str]:
    """The cells of a layout's line."""
    count = len(records.ids_BK)
    written = min(seconds_to_write(contestant, folder, records) for _ in range(runs))
    with contestant.reader(folder) as reader:
        found = reader.read_all()
    if not np.array_equal(found.ids_BK, records.ids_BK):
        raise ValueError(f"{contestant.name} gave back other class ids than it was given")
    readings = [rates_of_reading(contestant, folder, count) for _ in range(runs)]
    index = contestant.index_bytes(folder)
    return [
        f"{(bytes_below(folder) - index) / count:.2f}",
        f"{index / count:.1f}" if index else "",
        rate(count / written),
        *(rate(max(rates)) for rates in zip(*readings, strict=True)),
        f"{total_variation(records, found):.1e}",
    ]


def rate(records_per_second: float) -> str:
    """Millions with two digits after the point."""
    return f"{records_per_second / 1e6:.2f}M"


def cut(records: TopK, k: int) -> TopK:
    """Fewer classes; the tail takes what is cut off."""
    outside = np.concatenate([records.logp_BK[:, k:], records.tail_BT[:, :1]], axis=1)
    tail = np.logaddexp.reduce(outside.astype(np.float64), axis=1, keepdims=True)
    return TopK(records.ids_BK[:, :k], records.logp_BK[:, :k], tail.astype(np.float16))


def stored_records(path: Path, rows: int) -> TopK:
    """The first records of a file."""
    with np.load(path) as file:
        ids, logp, tail = (file[name][:rows] for name in ("ids", "logp", "tail"))
    if ids.max() >= CLASSES:
        raise SystemExit(f"{path} has class id {ids.max()}, expected at most {CLASSES - 1}")
    return TopK(ids.astype(np.uint16), logp.astype(np.float16), tail.astype(np.float16))


def main() -> None:
    parser = argparse.ArgumentParser(description="Layouts of a teacher's answers, side by side.")
    parser.add_argument("rows", type=int, nargs="?", default=262_144)
    parser.add_argument("--records", type=Path, help="an .npz file with ids, logp and tail")
    parser.add_argument("--runs", type=int, default=3, help="how often; the best counts")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core, pyarrow's threads included
    layouts = versions_of("numpy", "numcodecs", "pcodec", "pyarrow", "h5py")
    print(f"{describe()}\n{layouts}; on one core")
    for line in skipped():
        print(line)
    stored = stored_records(asked.records, asked.rows) if asked.records else None
    for k in (k for k in KEPT if stored is None or k <= stored.ids_BK.shape[1]):
        records = simulated(asked.rows, k) if stored is None else cut(stored, k)
        print(f"\nk = {k}, {len(records.ids_BK):,} records (M: millions of records a second)\n")
        print("| layout | bytes | + index | write | load | picked | read | TV |")
        print("|---|---|---|---|---|---|---|---|")
        for contestant in contestants():
            with TemporaryDirectory(prefix="retort-peers-") as name:
                cells = measure(contestant, Path(name) / "view", records, asked.runs)
            print(f"| {' | '.join([contestant.name, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
