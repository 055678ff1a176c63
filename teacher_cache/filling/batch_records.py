"""The teacher's records of a batch of rows, and the block that they make up.

B rows of a batch, G views of a tile, K kept classes, T temperatures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from teacher_cache.cache.blocks import Block
from teacher_cache.cache.cache import Cache
from teacher_cache.cache.sources import Sources
from teacher_cache.errors import CacheError, printable
from teacher_cache.images.index import ImageIndex, ImagesError
from teacher_cache.loading.queue import Rendered
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.record import ROWS_PER_CHECK, TopK
from teacher_cache.storage.ledger import BlockId
from teacher_cache.teacher.answers import Answers, answers
from teacher_cache.teacher.networks import Teacher
from teacher_cache.verification.replay import require_same_images


@dataclass(frozen=True, slots=True, eq=False)
class BatchRecords:
    """The teacher's records of one batch of rows, one TopK a view."""

    rows: np.ndarray
    topk: tuple[TopK, ...]
    checks: dict[tuple[int, int], int]
    unreadable: frozenset[int]
    sources_B: np.ndarray
    """uint32 [B] CRC-32C of the bytes of each row's image."""


def ask(
    teacher: Teacher, batch: Rendered, recipe: CacheRecipe, index: ImageIndex, sources: Sources
) -> BatchRecords:
    """Show a batch to the teacher, padded to the recipe's batch size.

    Raises:
        ImagesError: an unreadable image, unless `images.skip_unreadable`.
        ImagesChanged: an image that is not the one that the cache's other records are of.
        CacheError: logits that are not finite.
    """
    require_same_images(sources, index, batch)
    if batch.unreadable and not recipe.images.skip_unreadable:
        row, reason = next(iter(batch.unreadable.items()))
        raise ImagesError(
            f"{index.name_of(row)}: {reason}: repair it, or set images.skip_unreadable = true to "
            "leave such images out (to remove it would make this another data set, and another "
            "cache)"
        )
    rows = batch.request.rows
    absent = np.isin(rows, list(batch.unreadable))
    # All views are asked before the first answer is fetched, so the device is never idle.
    asked = []
    for pixels_BHWC in batch.pixels_GBHWC:
        logits_BC = teacher.logits_of_batch(pixels_BHWC, recipe.teacher.batch_size)
        asked.append(
            answers(
                logits_BC,
                k=recipe.topk.k,
                temperatures=recipe.topk.temperatures,
                moments=recipe.topk.keeps_moments,
            )
        )
    topk = tuple(_without(_fetched(each, rows, index), absent) for each in asked)
    unreadable = frozenset(batch.unreadable)
    return BatchRecords(rows, topk, batch.checks, unreadable, batch.sources_B)


def _fetched(asked: Answers, rows: np.ndarray, index: ImageIndex) -> TopK:
    finite = asked.finite_B.cpu().numpy()
    if not finite.all():
        first = printable(index.keys[rows[~finite][0]])
        raise CacheError(
            f"the teacher's logits of {first} are not finite: its weights "
            "or its arithmetic are broken; nothing of this tile was committed"
        )
    return asked.fetch()


def _without(topk: TopK, absent_B: np.ndarray) -> TopK:
    """The records, with fill values in the absent rows."""
    if absent_B.any():
        topk.ids_BK[absent_B] = np.iinfo(topk.ids_BK.dtype).max
        topk.logp_BK[absent_B] = np.nan
        topk.tail_BT[absent_B] = np.nan
        if topk.moments_B2 is not None:
            topk.moments_B2[absent_B] = np.nan
    return topk


def block_of(block: BlockId, g: int, batches: Sequence[BatchRecords]) -> Block:
    """Join the records that batches of consecutive rows have of their `g`-th view to a block."""
    parts = [batch.topk[g] for batch in batches]
    moments = [each.moments_B2 for each in parts if each.moments_B2 is not None]
    topk = TopK(
        np.concatenate([each.ids_BK for each in parts]),
        np.concatenate([each.logp_BK for each in parts]),
        np.concatenate([each.tail_BT for each in parts]),
        np.concatenate(moments) if moments else None,
    )
    start = int(batches[0].rows[0])
    check = np.zeros(-(-len(topk.ids_BK) // ROWS_PER_CHECK), np.uint32)
    for batch in batches:
        for (view, row), crc in batch.checks.items():
            if view == block.view:
                check[(row - start) // ROWS_PER_CHECK] = crc
    return Block(block, topk, check)


def commit_images(
    cache: Cache,
    shard: int,
    batches: Sequence[BatchRecords],
    *,
    allowed_unreadable: int,
    producer: Mapping[str, str],
) -> None:
    """Commit the checksums of all images of a shard, before any of its blocks is committed.

    Raises:
        ImagesChanged: they are not the images that other records of the shard are of.
        ImagesError: with them more images are unreadable than the recipe allows.
    """
    crc = np.concatenate([batch.sources_B for batch in batches])
    absent = frozenset(row for batch in batches for row in batch.unreadable)
    if absent and cache.sources.of(shard) is None:
        everywhere = absent | cache.sources.absent_rows()
        if len(everywhere) > allowed_unreadable:
            first = printable(cache.index.keys[min(absent)])
            raise ImagesError(
                f"{len(everywhere)} of {cache.layout.rows} images are unreadable, at most "
                f"{allowed_unreadable} are allowed (first: {first}): "
                "repair them, or set images.max_unreadable to a larger share of the images"
            )
    cache.sources.commit(shard, crc, absent, producer)
