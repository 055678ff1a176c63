"""What a cache will cost, predicted from a few real batches: records, bytes, hours, memory.

B rows of a batch, V views, N rows.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from teacher_cache.cache.blocks import Block, encoded_files
from teacher_cache.cache.slab import AHEAD, Slab, read_slab
from teacher_cache.cache.teacher_sample import read_sample
from teacher_cache.filling.fill import fill
from teacher_cache.filling.opening import open_or_create
from teacher_cache.format.layout import Layout
from teacher_cache.images.index import ImageIndex
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.recipes.document import parse_recipe
from teacher_cache.record import CHUNK_ROWS, Tail, TopK
from teacher_cache.storage.disk import Disk
from teacher_cache.storage.ledger import BlockId
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
    found = _sample(recipe, index.take(rows), teacher)
    fill_s, measures = found.seconds_a_record, found.measures
    layout = replace(found.layout, rows=len(index), rows_per_shard=recipe.storage.rows_per_shard)
    full, left = divmod(len(index), layout.rows_per_shard)
    view_bytes = full * found.shard_bytes(layout, layout.rows_per_shard)
    view_bytes += found.shard_bytes(layout, left) if left else 0
    bytes_a_record = view_bytes / len(index)
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


@dataclass(frozen=True, slots=True)
class _Sample:
    """What filling a small cache of one view came to."""

    records: Slab
    layout: Layout
    seconds_a_record: float
    measures: Mapping[str, float]
    """What the teacher's sample measured."""

    def shard_bytes(self, layout: Layout, rows: int) -> float:
        """What so many records weigh in one shard, which is filled up where they are fewer.

        Where the sample has fewer records, each of the others adds what one weighs in a shard that
        is full.
        """
        count = min(rows, self.layout.rows)
        encoded = self._encoded_bytes(layout, count)
        if rows == count:
            return encoded
        smallest = replace(layout, rows_per_shard=min(32 * -(-count // 32), CHUNK_ROWS))
        return encoded + (rows - count) * self._encoded_bytes(smallest, count) / count

    def _encoded_bytes(self, layout: Layout, count: int) -> int:
        layout, records, total = replace(layout, rows=count), self.records, 0
        moments_N2 = records.moments_N2
        for shard in range(layout.shards):
            own, checks = layout.rows_of(shard), layout.checks_of(shard)
            rows = slice(own.start, own.stop)
            topk = TopK(
                records.ids_NK[rows],
                records.logp_NK[rows],
                records.tail_NT[rows],
                None if moments_N2 is None else moments_N2[rows],
            )
            block = Block(BlockId(0, shard), topk, records.check[checks.start : checks.stop])
            total += sum(map(len, encoded_files(layout, 1, block).values()))
        return total


def _sample(recipe: CacheRecipe, index: ImageIndex, teacher: Teacher) -> _Sample:
    """Fill one view of these images for real."""
    document = recipe.model_dump(mode="json")
    document["views"]["count"] = 1
    small = parse_recipe(document, CacheRecipe, source="the sample")
    with TemporaryDirectory(prefix="retort-plan-") as folder:
        cache = open_or_create(Disk(Path(folder) / "cache"), small, index, teacher)
        started = time.perf_counter()
        for _ in fill(cache, index, teacher, small):
            pass
        seconds = time.perf_counter() - started
        sample, records = read_sample(cache), read_slab(cache, 0)
    measures = sample.measures if sample else {}
    return _Sample(records, cache.layout, seconds / len(index), measures)
