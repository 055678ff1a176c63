"""What ImageNet's 1.28 million records weigh in memory, against what plan-cache states."""

import json
import secrets
import subprocess
import sys

import numpy as np
import pytest
from caches import index_of, manifest_of, with_images
from repository import REPOSITORY
from small import cache_recipe

from teacher_cache.cache.blocks import Block, missing_blocks, read_entry, write_block
from teacher_cache.cache.cache import create_cache
from teacher_cache.filling.plan import reading_bytes, slab_bytes
from teacher_cache.storage.disk import Disk
from teacher_cache.teacher.answers import TopK

ROWS, RANKS = 1_281_167, 4
BESIDES = 8e6
"""Bytes a process that serve no record: threads' stacks and what the allocator keeps."""

MEASURE = """
import json, sys, pathlib
from teacher_cache.cache.cache import open_cache
from teacher_cache.storage.disk import Disk

def kilobytes(file, name):
    return int(pathlib.Path("/proc/self", file).read_text().split(name + ":")[1].split()[0])

def forget_peak():
    pathlib.Path("/proc/self/clear_refs").write_text("5")

cache = open_cache(Disk(pathlib.Path(sys.argv[1])))
"""

READER = (
    MEASURE
    + """
from student.data.batches import prefetched_slabs
forget_peak()
before = kilobytes("status", "VmRSS")
records = sum(len(slab.ids_NK) for slab in prefetched_slabs(cache, [0, 0, 0, 0]))
print(json.dumps({"records": records, "peak": 1024 * (kilobytes("status", "VmHWM") - before)}))
"""
)

RANK = (
    MEASURE
    + """
from teacher_cache.cache.shared_slab import SharedSlabs
name, rank, ranks = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def own_share():
    # without files: a library's pages are shared with whatever else runs at the time
    return sum(kilobytes("smaps_rollup", part) for part in ("Pss_Anon", "Pss_Shmem"))

resting = own_share(), kilobytes("status", "VmRSS")
forget_peak()
records, slabs = 0, []
with SharedSlabs(name, local_rank=rank, local_world_size=ranks) as shared:
    for _ in range(4):
        slabs = slabs[-1:]  # of the epoch at hand, while the next one's is read
        slabs.append(shared.read(cache, 0))
        slab = slabs[-1]
        for array in (slab.ids_NK, slab.logp_NK, slab.tail_NT, slab.check):
            records += len(array) * bool(array.sum(dtype="f4"))  # every page is touched
        del array, slab
    input(json.dumps({"records": records}) + "\\n")
    share = own_share() - resting[0]
    peak = kilobytes("status", "VmHWM") - resting[1]
    input(json.dumps({"share": 1024 * share, "peak": 1024 * peak}) + "\\n")
"""
)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A recipe, its cache of ImageNet's size with one view, and the bytes of its largest block."""
    recipe = cache_recipe(topk__k=10, storage__rows_per_shard=32_768, views__count=1)
    index = index_of(ROWS, classes=1000)
    root = tmp_path_factory.mktemp("imagenet") / "cache"
    cache = with_images(create_cache(Disk(root), manifest_of(recipe, index, 1000), index))
    random = np.random.default_rng(0)
    for block in missing_blocks(cache):
        rows = len(cache.rows(block.shard))
        ids = random.integers(0, 1000, (rows, 10), dtype=np.uint16)
        logp, tail = (-random.gamma(2, 1, (rows, k)).astype("f2") for k in (10, 2))
        check = random.integers(1, 2**32, -(-rows // 32), dtype=np.uint32)
        write_block(cache, Block(block, TopK(ids, logp, tail), check), {})
    entries = [read_entry(cache, block) for block in cache.blocks()]
    return recipe, cache, max(sum(file.size for file in entry.files) for entry in entries)


@pytest.mark.slow
def test_reading_imagenet_epoch_after_epoch_keeps_to_the_stated_memory(imagenet):
    recipe, cache, block_bytes = imagenet
    done = subprocess.run(
        [sys.executable, "-c", READER, cache.place.root],
        capture_output=True, text=True, check=True, cwd=REPOSITORY,
    )  # fmt: skip
    facts = json.loads(done.stdout)
    stated = reading_bytes(recipe, ROWS, block_bytes)
    print(f"peak {facts['peak'] / 1e6:.0f} MB, stated {stated / 1e6:.0f} MB")
    assert facts["records"] == 4 * ROWS
    assert 1.5 * slab_bytes(recipe, ROWS) < facts["peak"] < stated + BESIDES


@pytest.mark.slow
def test_the_ranks_of_a_host_together_keep_to_the_stated_memory(imagenet):
    recipe, cache, block_bytes = imagenet
    name = secrets.token_hex(8)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, cache.place.root, name, str(rank), str(RANKS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
        )
        for rank in range(RANKS)
    ]  # fmt: skip

    def answers():
        found = [json.loads(rank.stdout.readline()) for rank in ranks]
        for rank in ranks:
            rank.stdin.write("\n")
            rank.stdin.flush()
        return found

    records = [fact["records"] for fact in answers()]
    facts = answers()
    for rank in ranks:
        rank.communicate(timeout=900)
        assert rank.returncode == 0
    assert records == [4 * (3 * ROWS + -(-ROWS // 32))] * RANKS
    together = sum(fact["share"] for fact in facts)
    stated = reading_bytes(recipe, ROWS, block_bytes)
    peaks = [fact["peak"] for fact in facts]
    print(
        f"{RANKS} ranks together {together / 1e6:.0f} MB, stated {stated / 1e6:.0f} MB, "
        f"peak of one, shared pages counted in full, {max(peaks) / 1e6:.0f} MB"
    )
    assert 1.9 * slab_bytes(recipe, ROWS) < together < stated + RANKS * BESIDES
    # the pages of a third slab would show in the peak of whoever wrote or mapped it
    assert max(peaks) < stated + BESIDES
