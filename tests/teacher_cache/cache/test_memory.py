"""What ImageNet's 1.28 million records weigh in memory, against what plan-cache states."""

import json
import subprocess
import sys

import numpy as np
import pytest
from caches import index_of, manifest_of, with_images
from repository import REPOSITORY
from small import cache_recipe

from teacher_cache.cache.blocks import Block, missing_blocks, read_entry, write_block
from teacher_cache.cache.cache import create_cache
from teacher_cache.filling.plan import reading_bytes
from teacher_cache.storage.disk import Disk
from teacher_cache.teacher.answers import TopK

ROWS, BATCH = 1_281_167, 256
BESIDES = 8e6
"""Bytes a process that serve no record: threads' stacks and what the allocator keeps."""

READER = """
import json, pathlib, sys
import numpy as np
from student.data.run_plan import Plan
from student.data.slabs import prefetched_slabs
from student.data.training_data import TrainingData
from student.ranks import Ranks
from teacher_cache.cache.cache import open_cache
from teacher_cache.loading.renderers import ViewRenderer
from teacher_cache.storage.disk import Disk

def kilobytes(name):
    return int(pathlib.Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

number, count = int(sys.argv[2]), int(sys.argv[3])
cache = open_cache(Disk(pathlib.Path(sys.argv[1])))
rows = np.arange(len(cache.index))
renderer = ViewRenderer.of(cache.index, cache.manifest.parsed_recipe().views, None)
data = TrainingData(cache.index, renderer, cache, 1000, rows, 0, reuse_views=True)
batch = int(sys.argv[4])
plan = Plan(4, len(rows) // batch, batch, batch // count, 0, Ranks(number, count))
pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = kilobytes("VmRSS")
records = 0
for slab in prefetched_slabs(data, plan, range(4)):
    for array in (slab.ids_NK, slab.logp_NK, slab.tail_NT, slab.check):
        records += len(array) * bool(array.sum(dtype="f4"))  # every page is touched
print(json.dumps({"records": records, "peak": 1024 * (kilobytes("VmHWM") - before)}))
"""


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A cache of ImageNet's size with one view, and the bytes of its largest block."""
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
    return cache, max(sum(file.size for file in entry.files) for entry in entries)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
def test_reading_imagenet_epoch_after_epoch_keeps_to_the_stated_memory(imagenet, count):
    """One process, or the last of several ranks: what each of them holds by itself."""
    cache, block_bytes = imagenet
    done = subprocess.run(
        [sys.executable, "-c", READER, cache.place.root, *map(str, (count - 1, count, BATCH))],
        capture_output=True, text=True, check=True, cwd=REPOSITORY,
    )  # fmt: skip
    facts = json.loads(done.stdout)
    stated = reading_bytes(cache.layout, block_bytes, ranks=count)
    print(f"{count} ranks: peak {facts['peak'] / 1e6:.0f} MB, stated {stated / 1e6:.0f} MB")
    own = ROWS if count == 1 else ROWS // BATCH * BATCH // count
    assert facts["records"] == 4 * (3 * own + -(-ROWS // 32))
    assert 1.5 * cache.layout.slab_bytes(own) < facts["peak"] < stated + BESIDES
