"""What it costs that each of several ranks reads a view for itself, in CPU seconds.

    python -m benchmarks.ranks [ROWS] [RANKS...]        (minutes; 1,281,167 rows; 1 2 8 ranks)

The ranks read at the same time, from a warm page cache, as `train-student` does: they find their
rows in the order of an epoch, read and check every block, and keep the records of their own rows.
Seconds are those of a rank's process on a processor, which other processes' turns do not lengthen,
and the least of some repeats; the mean over the ranks. Records are simulated, some of them often.
"""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.machine import describe, versions_of
from benchmarks.records import cache_of, fill, simulated
from student.data.shuffle import epoch_order
from student.ranks import Ranks
from teacher_cache.cache.cache import open_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.format.layout import RECORD_ARRAYS
from teacher_cache.record import TopK
from teacher_cache.storage.disk import Disk

REPEATS = 7
DISTINCT = 65_536


def seconds(action: Callable[[], object]) -> float:
    """The least processor time that an action took."""
    times = []
    for _ in range(REPEATS):
        started = time.process_time()
        action()
        times.append(time.process_time() - started)
    return min(times)


def rank(folder: Path, number: int, count: int) -> dict[str, float]:
    """What one rank's reading costs, once all of them are ready."""
    cache = open_cache(Disk(folder))
    rows = len(cache.index)
    files = [p.read_bytes() for name in RECORD_ARRAYS for p in (folder / name).glob("c.*")]
    read_slab(cache, 0)
    print("ready", flush=True)
    sys.stdin.readline()

    def own() -> np.ndarray | None:
        if count == 1:
            return None
        order = epoch_order(rows, seed=0, epoch=1)[: rows // count * count]
        return np.sort(Ranks(number, count).share(order))

    kept = own()
    return {
        "order": seconds(own),
        "records": seconds(lambda: read_slab(cache, 0, kept)),
        "of which SHA-256": seconds(lambda: [hashlib.sha256(data).digest() for data in files]),
    }


def together(folder: Path, count: int) -> None:
    """Start the ranks, let them begin at once, and print their means."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.ranks", "--rank", folder, str(number), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    for process in ranks:
        assert process.stdout is not None
        process.stdout.readline()
    for process in ranks:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    found = [json.loads(process.communicate()[0]) for process in ranks]
    parts = [f"{name} {np.mean([one[name] for one in found]):.3f}" for name in found[0]]
    print(f"ranks: {count}, CPU seconds of each in an epoch: {', '.join(parts)}", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--rank"]:
        print(json.dumps(rank(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
        return
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_281_167
    counts = [int(count) for count in sys.argv[2:]] or [1, 2, 8]
    some = simulated(min(rows, DISTINCT), 10)
    at = np.arange(rows) % len(some.ids_BK)
    with TemporaryDirectory(prefix="retort-ranks-") as name:
        topk = TopK(some.ids_BK[at], some.logp_BK[at], some.tail_BT[at])
        cache = fill(cache_of(Path(name) / "cache", topk), topk)
        size = sum(
            p.stat().st_size for n in RECORD_ARRAYS for p in (cache.place.root / n).iterdir()
        )
        print(f"{describe()}; {versions_of('numpy')}; {rows:,} rows, k = 10, {size / 1e6:.1f} MB")
        for count in counts:
            together(cache.place.root, count)


if __name__ == "__main__":
    main()
