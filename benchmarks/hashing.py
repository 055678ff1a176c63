"""What hashing costs: alone, and in the load of a slab, where threads hash while others decode.

    python -m benchmarks.hashing [ROWS] [K]        (one minute at the default 320,000 rows, k = 10)

The slab is loaded as `read_slab` does it, block by block from a warm page cache, with each digest
in turn; "none" only reads and decodes. A share is the part of a load's time that "none" is without.
`read_slab` also reads the ledger's entries. Rates are those of median times: on one core in seconds
of this process on it, which other processes' turns do not lengthen, and on several by the clock.
"""

import hashlib
import os
import ssl
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import google_crc32c

from benchmarks.machine import describe
from benchmarks.records import cache_of, fill, simulated
from teacher_cache.cache.blocks import read_entry
from teacher_cache.cache.cache import Cache
from teacher_cache.cache.slab import decoded_block, read_slab
from teacher_cache.format.layout import RECORD_ARRAYS
from teacher_cache.storage.ledger import BlockEntry, BlockId

DIGESTS: dict[str, Callable[[bytes], object]] = {
    "none": len,
    "SHA-256": lambda data: hashlib.sha256(data).digest(),
    "BLAKE2b": lambda data: hashlib.blake2b(data).digest(),
    "CRC-32C": google_crc32c.value,
}
FEATURES = ("sse4_2", "pclmulqdq", "avx2", "avx512f", "sha_ni", "crc32", "sha2", "sha512")
AHEAD = 2
REPEATS = 15


def features() -> str:
    """What of the processor the libraries of digests may use, by its names in /proc/cpuinfo."""
    found: set[str] = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            found.update(words.split())
    return " ".join(name for name in FEATURES if name in found) or "none known"


def files_of(
    cache: Cache, entry: BlockEntry, digest: Callable[[bytes], object]
) -> dict[str, bytes]:
    """A block's bytes by array, each file hashed."""
    found = {}
    for file in entry.files:
        data = cache.place.read(file.key, at_most=file.size)
        if data is None:
            raise FileNotFoundError(file.key)
        digest(data)
        found[file.key.partition("/")[0]] = data
    return {name: found[name] for name in RECORD_ARRAYS}


def load(cache: Cache, entries: list[BlockEntry], digest: Callable[[bytes], object]) -> None:
    """Decode every block while threads read and hash the next ones."""
    running: list[Future[dict[str, bytes]]] = []
    with ThreadPoolExecutor(AHEAD) as pool:
        for at, entry in enumerate(entries):
            while len(running) < min(at + 1 + AHEAD, len(entries)):
                running.append(pool.submit(files_of, cache, entries[len(running)], digest))
            decoded_block(cache, entry, running[at].result())


def seconds_by_name(
    contestants: dict[str, Callable[[], object]], clock: Callable[[], float]
) -> dict[str, list[float]]:
    """All times of each, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(REPEATS):
        for name, run in contestants.items():
            started = clock()
            run()
            times[name].append(clock() - started)
    return times


def alone(cache: Cache, entries: list[BlockEntry]) -> None:
    """Digests of a slab's files that lie in memory."""
    rows = len(cache.index)
    files = [data for entry in entries for data in files_of(cache, entry, len).values()]
    size = sum(map(len, files))
    print(f"alone, on one core, {size / rows:.2f} bytes a record in {len(files)} files")
    contestants = {
        name: lambda digest=digest: [digest(data) for data in files]
        for name, digest in DIGESTS.items()
        if name != "none"
    }
    for name, times in seconds_by_name(contestants, time.process_time).items():
        typical = statistics.median(times)
        print(f"  {name}: {rows / typical / 1e6:.1f}M records/s, {size / typical / 1e9:.2f} GB/s")


def loading(cache: Cache, entries: list[BlockEntry], cores: set[int]) -> None:
    """Loads on these cores, by digest, beside `read_slab` itself."""
    os.sched_setaffinity(0, cores)
    rows = len(cache.index)
    contestants: dict[str, Callable[[], object]] = {
        name: lambda digest=digest: load(cache, entries, digest) for name, digest in DIGESTS.items()
    }
    contestants["read_slab"] = lambda: read_slab(cache, 0)
    clock = time.process_time if len(cores) == 1 else time.perf_counter
    times = seconds_by_name(contestants, clock)
    print(f"a slab load on {len(cores)} of {os.cpu_count()} cores")
    for name, found in times.items():
        # each against the 'none' of the same turn, so that a busy moment counts for both
        pairs = zip(found, times["none"], strict=True)
        share = statistics.median(1 - none / mine for mine, none in pairs)
        added = "" if name == "none" else f"; {100 * share:.0f}% of the time is more than none's"
        print(f"  {name}: {rows / statistics.median(found) / 1e6:.1f}M records/s{added}")


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 320_000
    k = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    print(f"{describe()}\nprocessor features: {features()}; {ssl.OPENSSL_VERSION}, ", end="")
    print(f"google-crc32c in {google_crc32c.implementation}; k = {k}, {rows:,} rows")
    cores = os.sched_getaffinity(0)
    with TemporaryDirectory(prefix="retort-hashing-") as folder:
        topk = simulated(rows, k)
        cache = fill(cache_of(Path(folder) / "cache", topk), topk)
        blocks = [BlockId(0, shard) for shard in range(cache.layout.shards)]
        entries = [entry for block in blocks if (entry := read_entry(cache, block))]
        os.sched_setaffinity(0, {min(cores)})
        alone(cache, entries)
        for count in sorted({1, len(cores)}):
            loading(cache, entries, set(sorted(cores)[:count]))


if __name__ == "__main__":
    main()
