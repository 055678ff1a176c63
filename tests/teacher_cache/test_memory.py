"""What ImageNet's 1.28 million records weigh in memory, against what plan-cache states."""

import json
import subprocess
import sys

import numpy as np
import pytest
from small import REPOSITORY, cache_recipe
from test_store import index_of, manifest_of

from teacher_cache.plan import slab_bytes
from teacher_cache.store import Block, create_cache, missing_blocks, write_block
from teacher_cache.topk import TopK

ROWS = 1_281_167

READER = """
import json, sys, pathlib
from student.batches import prefetched_slabs
from teacher_cache.store import open_cache
cache = open_cache(pathlib.Path(sys.argv[1]))

def kilobytes(name):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(name + ":")[1].split()[0])

pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
before = kilobytes("VmRSS")
records = sum(len(slab.ids_NK) for slab in prefetched_slabs(cache, [0, 0, 0, 0]))
print(json.dumps({"records": records, "peak": 1024 * (kilobytes("VmHWM") - before)}))
"""


@pytest.mark.slow
def test_reading_imagenet_epoch_after_epoch_keeps_to_the_stated_memory(tmp_path):
    recipe = cache_recipe(topk__k=10, storage__rows_per_shard=32_768, views__count=1)
    index = index_of(ROWS, classes=1000)
    cache = create_cache(tmp_path / "cache", manifest_of(recipe, index, 1000), index)
    random, written = np.random.default_rng(0), 0
    for block in missing_blocks(cache):
        rows = len(cache.rows(block.shard))
        ids = random.integers(0, 1000, (rows, 10), dtype=np.uint16)
        logp, tail = (-random.gamma(2, 1, (rows, k)).astype("f2") for k in (10, 2))
        check = random.integers(0, 2**32, -(-rows // 32), dtype=np.uint32)
        write_block(cache, Block(block, TopK(ids, logp, tail), check), {})
    names = ("ids", "logp", "tail", "check")
    written = sum(p.stat().st_size for n in names for p in (cache.root / n / "c").rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", READER, cache.root],
        capture_output=True, text=True, check=True, cwd=REPOSITORY,
    )  # fmt: skip
    facts = json.loads(done.stdout)
    stated = 2 * slab_bytes(recipe, ROWS) + written
    print(f"peak {facts['peak'] / 1e6:.0f} MB, stated {stated / 1e6:.0f} MB")
    assert facts["records"] == 4 * ROWS
    assert 1.5 * slab_bytes(recipe, ROWS) < facts["peak"] < stated + 32e6
