"""The cache against the usual formats, on one core, in one run: bytes, records a second, ratios.

    python -m benchmarks.cache [ROWS] [CACHE]        (about 2 minutes at the default 320,000 rows)

Simulated records have the shape of a good ImageNet teacher's (1,000 classes, a peaked softmax over
a Gaussian's tail); CACHE adds the bytes of a real one.
"""

import os
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.machine import describe
from student.batches import targets_of
from teacher_cache.images import ImageIndex, index_images
from teacher_cache.manifest import Manifest
from teacher_cache.recipe import CacheRecipe, parse_recipe
from teacher_cache.store import (
    Block,
    Cache,
    create_cache,
    missing_blocks,
    open_cache,
    read_slab,
    write_block,
)
from teacher_cache.topk import TopK, top_k
from teacher_cache.verify import verify

CLASSES = 1_000
BATCH = 2_048


def simulated_logits(rows: int, seed: int) -> torch.Tensor:
    """A label's logit 5 to 12 above a Gaussian's, two dozen related classes between."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn((rows, CLASSES), generator=g)
    label = torch.randint(CLASSES, (rows, 1), generator=g)
    related = (label + torch.randint(1, 40, (rows, 24), generator=g)) % CLASSES
    logits.scatter_add_(1, related, 3 * torch.rand((rows, 24), generator=g))
    logits.scatter_add_(1, label, 5 + 7 * torch.rand((rows, 1), generator=g))
    return logits


def new_cache(root: Path, rows: int, k: int) -> Cache:
    document = {
        "teacher": {"model": "beitv2_base_patch16_224"},
        "views": {"count": 1},
        "topk": {"k": k, "temperatures": [1.0]},
    }
    recipe = parse_recipe(document, CacheRecipe, source="benchmark")
    keys = tuple(f"n{row % CLASSES:08}/n{row % CLASSES:08}_{row}.JPEG" for row in range(rows))
    index = ImageIndex(
        root, keys, np.arange(rows) % CLASSES, {f"n{c:08}": c for c in range(CLASSES)}
    )
    manifest = Manifest(
        recipe.model_dump(mode="json"), recipe.digest(), index.digest(), "0" * 64, CLASSES,
        "pillow-1", {}, {},
    )  # fmt: skip
    return create_cache(root, manifest, index)


def blocks(cache: Cache, k: int) -> list[Block]:
    result = []
    for block in missing_blocks(cache):
        rows = len(cache.rows(block.shard))
        parts = [
            top_k(simulated_logits(min(4096, rows - at), 1000 * block.shard + at), k=k,
                  temperatures=(1.0,))
            for at in range(0, rows, 4096)
        ]  # fmt: skip
        topk = TopK(*(np.concatenate([getattr(p, n) for p in parts])
                      for n in ("ids_BK", "logp_BK", "tail_BT")))  # fmt: skip
        checks = np.arange(-(-rows // 32), dtype=np.uint32) * np.uint32(2_654_435_761)
        result.append(Block(block, topk, checks))
    return result


def best_of(runs: int, action: Callable[[], object]) -> float:
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return min(times)


def sizes(root: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for path in root.rglob("*"):
        if path.is_file():
            part = path.relative_to(root).parts[0]
            found[part] = found.get(part, 0) + path.stat().st_size
    return found


def report_sizes(root: Path, name: str) -> None:
    cache, found = open_cache(root), sizes(root)
    records = (len(cache.blocks()) and len(cache.index)) * cache.view_count
    payload = sum(found[part] for part in ("ids", "logp"))
    index = sum(found[part] for part in ("keys", "labels", "classes", "class_ids"))
    of_views = sum(found.values()) - index
    print(
        f"{name}: {payload / records:.2f} bytes a record of ids + logp, "
        f"{of_views / records:.2f} with tail, check, ledger and metadata; "
        f"the index adds {index / len(cache.index):.1f} an image, once"
    )


def measure(folder: Path, rows: int, k: int) -> None:
    cache = new_cache(folder / f"k{k}", rows, k)
    made = blocks(cache, k)
    started = time.perf_counter()
    for block in made:
        write_block(cache, block, {})
    write_s = time.perf_counter() - started
    print(f"\nk = {k}, {rows:,} rows")
    report_sizes(cache.root, f"simulated, k = {k}")
    load_s = best_of(3, lambda: read_slab(cache, 0))
    print(
        f"encode + commit {rows / write_s:,.0f} records/s; slab load {rows / load_s:,.0f} records/s"
    )
    gpu, cpu = 100 * 5_000 * write_s / rows, 100 * write_s / rows / (12.2 / 32)
    print(f"the commit costs {gpu:.2f}% of a core at a GPU's 5,000 images/s")
    print(f"and {cpu:.4f}% of BEiTv2-B's forward on a CPU core (12.2 s for 32 images)")
    slab = read_slab(cache, 0)
    random = np.random.default_rng(0)
    picks = [random.permutation(rows)[:BATCH] for _ in range(50)]

    batch_s = best_of(3, lambda: [targets_of(slab, pick, 0) for pick in picks]) / len(picks)
    rate = BATCH / batch_s
    print(f"targets of a batch of {BATCH:,}: {1e3 * batch_s:.3f} ms ({rate:,.0f} records/s)")
    epoch_s = load_s / rows + batch_s / BATCH
    print(f"an epoch in shuffled order, load and targets: {1 / epoch_s:,.0f} records/s")
    if k == 10:
        against_peers(folder, slab, 1 / epoch_s)
    found_s = best_of(3, lambda: verify(cache))
    size = verify(cache).bytes
    print(f"verify-cache: {size / found_s / 1e6:,.0f} MB/s of {size / 1e6:.1f} MB")


def against_peers(folder: Path, slab, ours: float) -> None:
    """The usual formats: fixed records with keys, a seek each; a torch.save file an image."""
    count = min(20_000, len(slab.ids_NK))
    path = folder / "records.bin"
    key_bytes = 32
    width = key_bytes + slab.ids_NK.shape[1] * 4
    with path.open("wb") as file:
        for row in range(count):
            file.write(f"{row}".encode().ljust(key_bytes, b"\0"))
            file.write(slab.ids_NK[row].tobytes() + slab.logp_NK[row].tobytes())
    order = np.random.default_rng(1).permutation(count).tolist()
    k = slab.ids_NK.shape[1]

    def seek_and_read() -> None:
        with path.open("rb") as file:
            for row in order:
                file.seek(row * width)
                data = file.read(width)
                key = data[:key_bytes].rstrip(b"\0").decode()
                ids = np.frombuffer(data, np.uint16, k, key_bytes).astype(np.int64)
                logp = np.frombuffer(data, np.float16, k, key_bytes + 2 * k).astype(np.float32)
                torch.from_numpy(ids), torch.from_numpy(logp), key

    small = min(3_000, count)
    (folder / "files").mkdir()
    for row in range(small):
        torch.save(
            (torch.from_numpy(slab.logp_NK[row].copy()), torch.from_numpy(slab.ids_NK[row].copy())),
            folder / "files" / f"{row}.pt",
        )

    def load_files() -> None:
        for row in order:
            if row < small:
                torch.load(folder / "files" / f"{row}.pt", weights_only=True)

    reader, files = count / best_of(2, seek_and_read), small / best_of(2, load_files)
    for name, rate in (("a binary file, a seek a record", reader), ("torch.save files", files)):
        print(f"{name}: {rate:,.0f} records/s; the cache is {ours / rate:.0f} times as fast")


def measure_index(folder: Path, count: int = 100_000) -> None:
    for c in range(100):
        (folder / "images" / f"class-{c:03}").mkdir(parents=True)
        for n in range(count // 100):
            os.close(os.open(folder / "images" / f"class-{c:03}" / f"{n:06}.jpg", os.O_CREAT))
    with tarfile.open(folder / "images.tar", "w") as tar:
        for row in range(count):
            tar.addfile(tarfile.TarInfo(f"class-{row % 100:03}/{row:06}.jpg"))
    print()
    for name, data in (("files", folder / "images"), ("members of a tar", folder / "images.tar")):
        started = time.process_time()
        seconds = best_of(1, lambda data=data: index_images(data))
        of_cpu = time.process_time() - started
        print(f"index of {count:,} {name}: {seconds:.2f} s, {of_cpu:.2f} s of them on the CPU")


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 320_000
    torch.set_num_threads(1)
    print(describe())
    with TemporaryDirectory(prefix="retort-cache-") as name:
        for k in (10, 20, 50):
            measure(Path(name), rows, k)
        measure_index(Path(name))
    for path in map(Path, sys.argv[2:]):
        teacher = open_cache(path).manifest.recipe["teacher"]["model"]
        report_sizes(path, f"real, {teacher}")


if __name__ == "__main__":
    main()
