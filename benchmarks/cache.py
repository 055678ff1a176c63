"""The cache against the usual formats, on one core, in one run: bytes, records a second, ratios.

    python -m benchmarks.cache [ROWS] [CACHE...]        (3 minutes at the default 320,000 rows)

Simulated records have the shape of a good ImageNet teacher's (1,000 classes, a peaked softmax over
a Gaussian's tail); CACHE adds the bytes of real ones (`benchmarks.fine_teacher` makes some).
"""

import os
import sys
import tarfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import zarr

from benchmarks import sizes
from benchmarks.machine import describe, versions_of
from benchmarks.records import cache_of, fill, simulated
from student.data.batches import targets_of
from teacher_cache.cache.cache import Cache
from teacher_cache.cache.slab import Slab, read_slab
from teacher_cache.format.layout import RECORD_ARRAYS
from teacher_cache.images.index import index_images
from teacher_cache.recipes.cache_recipe import TeacherSection
from teacher_cache.record import Encoding, TopK
from teacher_cache.teacher.networks import load_teacher
from teacher_cache.verification.verify import verify

BATCH = 2_048
GPU_RATE = 5_000
ZARRS = "zarrs.ZarrsCodecPipeline"


def best_of(runs: int, action: Callable[[], object]) -> float:
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return min(times)


def teacher_seconds() -> float:
    """BEiTv2-B's forward on this core, for one image of eight."""
    section = TeacherSection(model="beitv2_base_patch16_224", pretrained=False)
    teacher = load_teacher(
        section, class_count=1_000, has_class_map=False, size=224, device=torch.device("cpu")
    )
    pixels_BHWC = torch.zeros((8, 224, 224, 3), dtype=torch.uint8)
    return best_of(2, lambda: teacher.logits(pixels_BHWC)) / len(pixels_BHWC)


def measure(folder: Path, topk: TopK, encoding: Encoding, teacher_s: float) -> None:
    rows, k = topk.ids_BK.shape
    print(f"\nk = {k}, {rows:,} rows, {encoding.value}")
    cache = cache_of(folder / f"{encoding.value}-{k}", topk, encoding)
    write_s = best_of(1, lambda: fill(cache, topk)) / rows
    print(
        f"encode + commit: {1 / write_s:,.0f} records/s, {100 * write_s / teacher_s:.4f}% of "
        f"BEiTv2-B's forward on this core ({1000 * teacher_s:.0f} ms an image), "
        f"{100 * GPU_RATE * write_s:.2f}% of a core at a GPU's {GPU_RATE:,} images/s"
    )
    load_s = slab_load(cache)
    slab = read_slab(cache, 0)
    random = np.random.default_rng(0)
    picks = [random.permutation(rows)[:BATCH] for _ in range(50)]
    batch_s = best_of(3, lambda: [targets_of(slab, pick, 0) for pick in picks]) / len(picks)
    print(f"targets of a batch of {BATCH:,}: {1e3 * batch_s:.3f} ms")
    ours = 1 / (load_s / rows + batch_s / BATCH)
    print(f"an epoch in shuffled order, load and targets: {ours:,.0f} records/s")
    if k == 10 and encoding is Encoding.DEFAULT:
        against_peers(folder, slab, ours)
    found_s, size = best_of(3, lambda: verify(cache)), verify(cache).bytes
    print(f"verify-cache: {size / found_s / 1e6:,.0f} MB/s of {size / 1e6:.1f} MB")


def slab_load(cache: Cache) -> float:
    """Seconds of ours, beside zarr-python's with its own codecs and with zarrs'."""
    contestants: dict[str, Callable[[], object]] = {"ours": lambda: read_slab(cache, 0)}
    pipelines = {"zarr-python": zarr.config.get("codec_pipeline.path")}
    if find_spec("zarrs"):
        pipelines["zarr-python with zarrs"] = ZARRS
    for name, pipeline in pipelines.items():
        setting = {"codec_pipeline.path": pipeline, "codec_pipeline.strict": True}
        with warnings.catch_warnings(), zarr.config.set(setting):
            warnings.simplefilter("ignore")
            arrays = [zarr.open_array(cache.place.root / name, mode="r") for name in RECORD_ARRAYS]
        # a range of views: for a single one zarrs falls back, which strict refuses
        contestants[name] = lambda arrays=arrays: [array[0:1] for array in arrays]
    seconds = dict.fromkeys(contestants, float("inf"))
    for _ in range(7):  # taking turns, so that a busy moment hits all of them
        seconds = {name: min(s, best_of(1, contestants[name])) for name, s in seconds.items()}
    rates = [f"{name} {len(cache.index) / s / 1e6:.1f}M" for name, s in seconds.items()]
    print(f"slab load, records/s: {', '.join(rates)} (ours compares the ledger's SHA-256, too)")
    return seconds["ours"]


def against_peers(folder: Path, slab: Slab, ours: float) -> None:
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
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core, zarrs' threads included
    print(describe())
    print(versions_of("numcodecs", "pcodec", "zarrs", "numpy"))
    teacher_s = teacher_seconds()
    with TemporaryDirectory(prefix="retort-cache-") as name:
        for k in (10, 20, 50):
            topk = simulated(rows, k)
            for encoding in Encoding if k == 10 else (Encoding.DEFAULT,):
                measure(Path(name), topk, encoding, teacher_s)
        measure_index(Path(name))
    print()
    sizes.main(min(rows, 98_304), [Path(path) for path in sys.argv[2:]])


if __name__ == "__main__":
    main()
