"""The cache: record arrays whose blocks are committed by the ledger.

V views, N rows (images), K kept classes, T temperatures, S rows a shard. docs/cache-format.md
specifies the format; teacher_cache/ledger.py says what of it exists.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from teacher_cache.arrays import (
    encode_shard,
    first_files,
    grown,
    quiet_zarr,
    read_index,
    shard_key,
    views_described,
)
from teacher_cache.encodings import stored_logp
from teacher_cache.errors import CacheError
from teacher_cache.images import ImageIndex
from teacher_cache.layout import (
    RECORD_ARRAYS,
    ROWS_PER_CHECK,
    Layout,
)
from teacher_cache.ledger import (
    BlockId,
    LedgerEntry,
    StoredFile,
    committed_blocks,
    crc32c_of,
    entry_key,
    is_committed,
    read_entry,
)
from teacher_cache.manifest import Manifest
from teacher_cache.place import Place, Root, place_of
from teacher_cache.topk import TopK


@dataclass(frozen=True, slots=True)
class Cache:
    """An open cache: where it lies, what it was made from, which images its rows are."""

    root: Root
    manifest: Manifest
    index: ImageIndex
    """The index as stored; its root is the cache's, so rebase it before reading images."""
    view_count: int
    rows_per_shard: int

    @property
    def store(self) -> Place:
        """What lies below the root."""
        return place_of(self.root)

    def blocks(self) -> list[BlockId]:
        """Every block of a full cache, views first: the order in which they are filled."""
        shards = -(-len(self.index) // self.rows_per_shard)
        return [BlockId(view, shard) for view in range(self.view_count) for shard in range(shards)]

    def rows(self, shard: int) -> range:
        """The rows of one shard."""
        start = shard * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, len(self.index)))

    def layout(self) -> Layout:
        """The shape of one view's arrays."""
        recipe = self.manifest.parsed_recipe()
        return Layout(
            rows=len(self.index),
            rows_per_shard=self.rows_per_shard,
            k=recipe.topk.k,
            temperatures=len(recipe.topk.temperatures),
            class_count=self.manifest.class_count,
            encoding=recipe.storage.encoding,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The records of one block, rows in order."""

    id: BlockId
    topk: TopK
    check: np.ndarray
    """uint32 [ceil(rows / 32)] CRC-32 of the checked rows' pixels."""
    absent_rows: tuple[int, ...] = ()


def checked_row(view: int, entry: int) -> int:
    """The row whose pixels entry `entry` of view `view`'s `check` array holds."""
    return ROWS_PER_CHECK * entry + view % ROWS_PER_CHECK


def create_cache(root: Root, manifest: Manifest, index: ImageIndex) -> Cache:
    """Create an empty cache, whole or not at all, or open the one that another process just made.

    Raises:
        CacheError: `root` exists and is not a cache.
    """
    root = root.resolve() if isinstance(root, Path) else root
    place_of(root).create(first_files(manifest, index))
    return open_cache(root)


def open_cache(root: Root) -> Cache:
    """Open a cache for reading or filling.

    Raises:
        CacheError: nothing there, no cache, or a damaged manifest or index.
    """
    manifest, index = read_origin(root)
    # the fewest: a crash while views are appended may leave some arrays longer
    view_count = min(views_described(root, name) for name in RECORD_ARRAYS)
    rows_per_shard = int(manifest.recipe["storage"]["rows_per_shard"])
    return Cache(root, manifest, index, view_count, rows_per_shard)


def read_origin(root: Root) -> tuple[Manifest, ImageIndex]:
    """What a cache was made from, and its images.

    Raises:
        CacheError: nothing there, no cache, or a damaged manifest or index.
    """
    group = place_of(root).read("zarr.json")
    if group is None:
        raise CacheError(
            f"{root}: no cache there; fill one with `cache-teacher RECIPE --data DIR --out {root}`"
        )
    try:
        manifest = Manifest.from_json(json.loads(group)["attributes"], source=str(root))
        with quiet_zarr():
            index = read_index(root)
    except (ValueError, OSError, KeyError, TypeError) as error:
        if isinstance(error, CacheError):
            raise
        raise CacheError(
            f"{root}: its manifest or index cannot be read as a cache's ({error}): restore "
            "zarr.json, keys, labels, classes and class_ids from a copy, or from a new cache that "
            "the same cache-teacher command starts elsewhere; the records stay"
        ) from error
    if index.digest() != manifest.index_digest:
        raise CacheError(f"{root}: its image index is damaged: restore keys, labels and classes")
    return manifest, index


def append_views(cache: Cache, view_count: int) -> Cache:
    """Make room for more views; what is there stays as it is. Safe to repeat after a crash."""
    if view_count > cache.view_count:
        for name in RECORD_ARRAYS:
            cache.store.update(f"{name}/zarr.json", partial(grown, view_count=view_count))
    return open_cache(cache.root)


def missing_blocks(cache: Cache) -> list[BlockId]:
    """The blocks that the ledger lacks, in filling order."""
    committed = committed_blocks(cache.root)
    return [block for block in cache.blocks() if block not in committed]


def complete_views(cache: Cache) -> list[int]:
    """The views whose blocks the ledger names, every one."""
    incomplete = {block.view for block in missing_blocks(cache)}
    return [view for view in range(cache.view_count) if view not in incomplete]


def write_block(cache: Cache, block: Block, producer: Mapping[str, str]) -> int:
    """Commit one block: encode its files, publish them, name them in the ledger.

    Any number of processes may write the same block: the first one's records stay, whole.

    Returns:
        How many bytes the files have; 0 where the block was committed before.

    Raises:
        ValueError: records of another shape than the block's rows.
        OSError, StoreError: it cannot be written; nothing is committed then.
    """
    rows = cache.rows(block.id.shard)
    if len(block.topk.ids_BK) != len(rows):
        raise ValueError(f"got {len(block.topk.ids_BK)} records, expected {len(rows)}")
    if is_committed(cache.root, block.id):
        return 0
    logp = stored_logp(block.topk.logp_BK, cache.layout().encoding)
    values = (block.topk.ids_BK, logp, block.topk.tail_BT, block.check)
    files = {
        shard_key(name, block.id): encode_shard(cache.root, block.id, rows, name, value)
        for name, value in zip(RECORD_ARRAYS, values, strict=True)
    }
    stored = tuple(StoredFile(key, len(data), crc32c_of(data)) for key, data in files.items())
    cache.store.publish(LedgerEntry(block.id, stored, block.absent_rows, producer), files)
    return sum(file.size for file in stored)


def drop_block(cache: Cache, block: BlockId) -> None:
    """Forget a block and remove its files, so that the next cache-teacher computes it anew."""
    cache.store.withdraw(entry_key(block), [shard_key(name, block) for name in RECORD_ARRAYS])


def absent_rows(cache: Cache) -> frozenset[int]:
    """Rows that some committed block marks as absent: their image could not be read."""
    blocks = sorted(committed_blocks(cache.root))
    entries = cache.store.in_order(partial(read_entry, cache.root), blocks)
    return frozenset(row for entry in entries if entry for row in entry.absent_rows)
