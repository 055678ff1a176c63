"""Caches of made-up records, without a teacher, and what tests do to them."""

from pathlib import Path

import numpy as np
import torch
from small import cache_recipe

from teacher_cache.cache.blocks import Block, missing_blocks, write_block
from teacher_cache.cache.cache import create_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.cache.teacher_sample import TeacherSample, keep_sample
from teacher_cache.format.manifest import Manifest
from teacher_cache.images.index import ImageIndex
from teacher_cache.storage.disk import Disk
from teacher_cache.teacher.answers import top_k


def index_of(rows, classes=3):
    keys = tuple(f"class-{row % classes}/{row:05}.png" for row in range(rows))
    labels = np.arange(rows) % classes
    return ImageIndex(Path("/data"), keys, labels, {f"class-{c}": c for c in range(classes)})


def manifest_of(recipe, index, classes=3):
    return Manifest(
        recipe=recipe.model_dump(mode="json"),
        recipe_digest=recipe.digest(),
        index_digest=index.digest(),
        image_count=len(index),
        class_count=classes,
        teacher={"weights_sha256": "0" * 64},
        pixel_engine="pillow-1",
        pixel_libraries={"pillow": "13.0.0"},
        versions={"torch": "2"},
        cache_id="0123456789abcdef" * 2,
    )


def new_cache(root, rows=90, classes=3, **changes):
    """An empty cache whose images are known."""
    recipe = cache_recipe(**changes)
    index = index_of(rows, classes)
    return with_images(create_cache(Disk(root), manifest_of(recipe, index, classes), index))


def with_images(cache):
    """Name the images of every row, and what a teacher said of the first."""
    for shard in range(cache.layout.shards):
        crc = np.array(cache.rows(shard), np.uint32) * 7
        cache.sources.commit(shard, crc, frozenset(), {"host": "test"})
    first, layout = np.zeros(1, np.int64), cache.layout
    logp, tail = (-np.ones((1, n), np.float16) for n in (layout.k, layout.temperatures))
    ids, probability = np.arange(layout.k)[None], np.ones(1, np.float32)
    keep_sample(cache, TeacherSample(first, first, ids, logp, tail, probability))
    return cache


def block_of(cache, block, seed=0, k=2, classes=3):
    rows = len(cache.rows(block.shard))
    generator = torch.Generator().manual_seed(1000 * block.view + block.shard + seed)
    logits = torch.randn((rows, classes), generator=generator) * 3
    topk = top_k(logits, k=k, temperatures=(1.0, 2.0))
    return Block(block, topk, np.arange(-(-rows // 32), dtype=np.uint32) + 7 * block.view)


def filled_cache(root, **changes):
    cache = new_cache(root, **changes)
    for block in missing_blocks(cache):
        write_block(cache, block_of(cache, block), {"host": "test"})
    return cache


def assert_same_records(one, other):
    for view in range(one.view_count):
        a, b = read_slab(one, view), read_slab(other, view)
        for name in ("ids_NK", "logp_NK", "tail_NT", "check"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
