"""The image index of millions of images: opened, matched, shuffled, shared by eight processes.

    python -m benchmarks.index [IMAGES]

Names are like ImageNet-21k's. Memory is what eight processes hold together (PSS: shared pages are
counted once), beyond what each needs to import the code.
"""

import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.machine import describe
from student.data.shuffle import epoch_order
from teacher_cache.cache.index_files import index_files, read_index
from teacher_cache.images.index import ImageIndex, in_order
from teacher_cache.images.source import Listing
from teacher_cache.storage.disk import Disk

RANKS = 8


def listing_of(images, classes):
    """A folder's listing, each class's files in no order, as a file system gives them."""
    random = np.random.default_rng(0)
    labels = np.sort(random.integers(0, classes, images))
    numbers = random.permutation(images)
    names = [f"n{label:08}" for label in range(classes)]
    keys = [
        f"{names[label]}/{names[label]}_{number}.JPEG"
        for label, number in zip(labels.tolist(), numbers.tolist(), strict=True)
    ]
    return Listing(Path("/data"), keys, names, labels)


def seconds(label, function):
    """Call it, and print how long it took."""
    started = time.perf_counter()
    result = function()
    print(f"{label:44} {time.perf_counter() - started:8.2f} s", flush=True)
    return result


def pss_mb():
    """This process's memory, shared pages divided by those who share them."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("Pss:"))


def hold(folder, images, barrier, results):
    """What a rank of a training job does with its index."""
    before = pss_mb()
    index = read_index(Disk(Path(folder)), Path(folder), rows=images)
    index.digest()
    index.labels[np.arange(0, images, 1000)].sum()
    barrier.wait()
    results.put(pss_mb() - before)
    barrier.wait()


def measure(folder, images):
    """Order, match, open and shuffle an index that is written to a folder."""
    classes = max(2, images // 650)
    print(f"{images:,} images, {classes:,} classes")
    listing = listing_of(images, classes)
    order, names = seconds("a listing in no order put in order", lambda: in_order(listing))
    ids = {name: number for number, name in enumerate(listing.classes)}
    index = ImageIndex(Path("/data"), names, listing.labels[order], ids)
    for key, data in index_files(index).items():
        (folder / key).parent.mkdir(exist_ok=True)
        (folder / key).write_bytes(data)
    digest = index.digest()

    def opened():
        found = read_index(Disk(folder), folder, rows=images)
        assert found.digest() == digest
        return found

    stored = seconds("opened, its digest compared", opened)
    sorted_keys = list(names)  # as list_folder gives them
    by_name = Listing(listing.root, sorted_keys, listing.classes, index.labels)
    matched = seconds(
        "a folder's listing matched with it",
        lambda: in_order(by_name)[1] == stored.keys,
    )
    assert matched
    seconds("an epoch's order", lambda: epoch_order(images, seed=0, epoch=1))


def main(images):
    """Measure, and print."""
    print(describe())
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), images)
        context = multiprocessing.get_context("spawn")
        barrier, results = context.Barrier(RANKS), context.Queue()
        ranks = [
            context.Process(target=hold, args=(folder, images, barrier, results))
            for _ in range(RANKS)
        ]
        for rank in ranks:
            rank.start()
        print(f"{RANKS} processes hold together: {sum(results.get() for _ in ranks):,.0f} MB")
        for rank in ranks:
            rank.join()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
