"""What a cache will cost, predicted from a few real batches: records, bytes, hours, memory.

B rows of a batch, V views, N rows.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from teacher_cache.cache.blocks import committed_blocks, read_entry
from teacher_cache.cache.slab import AHEAD
from teacher_cache.cache.teacher_sample import read_sample
from teacher_cache.filling.fill import fill
from teacher_cache.filling.opening import open_or_create
from teacher_cache.format.layout import Layout
from teacher_cache.images.index import ImageIndex
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.recipes.document import parse_recipe
from teacher_cache.record import Tail
from teacher_cache.storage.disk import Disk
from teacher_cache.teacher.networks import Teacher
from teacher_cache.verification.fidelity import expected

SAMPLE_BATCHES = 4
"""Batches of the teacher's that are computed and encoded, besides one to warm up."""

CHECKSUM_BYTES, ROW_NUMBER_BYTES = 4, 8
ORDER_BYTES = 24
"""Of each row: its random word and its number while an epoch's order is found, and what the
allocator keeps of the order before."""


def plan(
    recipe: CacheRecipe, index: ImageIndex, teacher: Teacher, *, ranks: int = 1
) -> dict[str, Any]:
    """Fill a small cache from an even sample of the images, and scale it up.

    Args:
        recipe: the cache's.
        index: all images.
        teacher: built from the recipe.
        ranks: how many processes will train together on one host.

    Raises:
        ImagesError, CacheError: as `fill` does.
    """
    batch = recipe.teacher.batch_size
    count = min(len(index), SAMPLE_BATCHES * batch)
    rows = np.linspace(0, len(index) - 1, count).astype(np.int64)
    _teacher_seconds(teacher, recipe, batches=1)  # warm up
    teacher_s = _teacher_seconds(teacher, recipe, batches=SAMPLE_BATCHES) / SAMPLE_BATCHES / batch
    bytes_a_record, fill_s, layout, measures = _sample(recipe, index.take(rows), teacher)
    layout = replace(layout, rows=len(index), rows_per_shard=recipe.storage.rows_per_shard)
    records = len(index) * recipe.views.count
    block_bytes = bytes_a_record * len(layout.rows_of(0))
    rank_bytes = reading_bytes(layout, block_bytes, ranks=ranks)
    figures = {
        "bytes a record": bytes_a_record,
        "GB": bytes_a_record * records / 1e9,
        "teacher, images a second": 1 / teacher_s,
        "teacher, hours": teacher_s * records / 3600,
        "one process with decoding, hours": fill_s * records / 3600,
        "MB to read an epoch": bytes_a_record * len(index) / 1e6,
        "MB/s to read at 5,000 images a second": bytes_a_record * 5_000 / 1e6,
        "MB of two slabs in memory": 2 * layout.slab_bytes(len(index)) / 1e6,
        "MB of records in a rank's memory, at most": rank_bytes / 1e6,
        "MB of records in a host's memory, at most": ranks * rank_bytes / 1e6,
    }
    return {
        "images": len(index),
        "views": recipe.views.count,
        "records": records,
        "sample": count,
        "device": teacher.device.type,
        "ranks of a host": ranks,
        **{name: float(f"{value:.3g}") for name, value in figures.items()},
        **{
            f"gradient cosine, tau {tau:g}, {student}": found.spelt()
            for tau in recipe.topk.temperatures
            for student, found in (expected(measures, tau, Tail.UNIFORM) or {}).items()
        },
    }


def reading_bytes(layout: Layout, block_bytes: float, *, ranks: int = 1) -> float:
    """What reading epoch after epoch weighs in a rank's memory, at most, besides its own.

    Two slabs, this epoch's and the next: each the records of the rank's own rows and, where there
    are several ranks, the numbers of those rows. While one is read, a block that is decoded, those
    that threads hash ahead of it, and one that was just handed over; before that, where there are
    several ranks, the order of the epoch. And the images' checksums.
    """
    rows = layout.rows
    blocks = (AHEAD + 2) * block_bytes
    if ranks == 1:
        return 2 * layout.slab_bytes(rows) + blocks + CHECKSUM_BYTES * rows
    own = -(-rows // ranks)
    slab = layout.slab_bytes(own) + ROW_NUMBER_BYTES * own
    return 2 * slab + blocks + (CHECKSUM_BYTES + ORDER_BYTES) * rows


def _teacher_seconds(teacher: Teacher, recipe: CacheRecipe, *, batches: int) -> float:
    size = recipe.views.size
    pixels_BHWC = torch.zeros((recipe.teacher.batch_size, size, size, 3), dtype=torch.uint8)
    started = time.perf_counter()
    for _ in range(batches):
        teacher.logits(pixels_BHWC).cpu()
    return time.perf_counter() - started


def _sample(
    recipe: CacheRecipe, index: ImageIndex, teacher: Teacher
) -> tuple[float, float, Layout, Mapping[str, float]]:
    """Bytes and seconds a record of one view of these images, filled for real, its layout, and what
    the teacher's sample measured.
    """
    document = recipe.model_dump(mode="json")
    document["views"]["count"] = 1
    document["storage"]["rows_per_shard"] = min(
        recipe.storage.rows_per_shard, -(-len(index) // 32) * 32
    )
    if len(index) > 4096:
        document["storage"]["rows_per_shard"] = 4096
    small = parse_recipe(document, CacheRecipe, source="the sample")
    with TemporaryDirectory(prefix="retort-plan-") as folder:
        cache = open_or_create(Disk(Path(folder) / "cache"), small, index, teacher)
        started = time.perf_counter()
        for _ in fill(cache, index, teacher, small):
            pass
        seconds = time.perf_counter() - started
        entries = [read_entry(cache, block) for block in committed_blocks(cache.place)]
        size = sum(file.size for entry in entries if entry for file in entry.files)
        sample = read_sample(cache)
    measures = sample.measures if sample else {}
    return size / len(index), seconds / len(index), cache.layout, measures
