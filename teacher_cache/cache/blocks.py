"""The blocks of a cache: which of them the ledger names; reading, writing and withdrawing one.

K kept classes, S rows a shard.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from teacher_cache.cache.cache import Cache
from teacher_cache.errors import (
    DamagedRecords,
    repair_advice,
)
from teacher_cache.format.arrays import encode_shard, shard_key
from teacher_cache.format.descriptions import descriptions
from teacher_cache.format.encodings import stored_logp
from teacher_cache.format.layout import MOMENTS_ARRAY, RECORD_ARRAYS, Layout
from teacher_cache.record import TopK
from teacher_cache.storage.ledger import (
    MOST_ENTRY_BYTES,
    BlockEntry,
    BlockId,
    StoredFile,
    block_key,
    blocks_in,
    decode_block,
    encode_block,
)
from teacher_cache.storage.place import Place


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The records of one block, rows in order."""

    id: BlockId
    topk: TopK
    check: np.ndarray
    """uint32 [ceil(rows / 32)] CRC-32 of the checked rows' pixels."""


def is_committed(place: Place, block: BlockId) -> bool:
    """Whether the ledger names the block."""
    return place.exists(block_key(block))


def committed_blocks(place: Place) -> set[BlockId]:
    """Every block that the ledger names."""
    return blocks_in(place.keys("ledger"))


def missing_blocks(cache: Cache) -> list[BlockId]:
    """The blocks that the ledger lacks, in filling order."""
    committed = committed_blocks(cache.place)
    return [block for block in cache.blocks() if block not in committed]


def complete_views(cache: Cache) -> list[int]:
    """The views all of whose blocks the ledger names."""
    incomplete = {block.view for block in missing_blocks(cache)}
    return [view for view in range(cache.view_count) if view not in incomplete]


def read_entry(cache: Cache, block: BlockId) -> BlockEntry | None:
    """The entry of a block; None if the block is not committed.

    Raises:
        DamagedRecords: the entry is damaged, or belongs to another cache.
    """
    key = block_key(block)
    data = cache.place.read(key, at_most=MOST_ENTRY_BYTES)
    if data is None:
        return None
    try:
        entry = decode_block(data, block)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedRecords(
            f"ledger entry {cache.place}/{key} is damaged ({error}): {repair_advice(cache.place)}"
        ) from None
    if entry.owner != cache.owner:
        raise DamagedRecords(
            f"ledger entry {cache.place}/{key} belongs to another cache "
            f"({entry.owner.cache_id[:8]}, this one is {cache.owner.cache_id[:8]}): its records "
            f"were copied here from there: {repair_advice(cache.place)}"
        )
    # The keys follow from the block, so an entry cannot make a reader open any other file.
    expected = {shard_key(name, block) for name in cache.layout.record_arrays}
    if {file.key for file in entry.files} != expected:
        raise DamagedRecords(
            f"ledger entry {cache.place}/{key} names other files than those of its block: "
            f"{repair_advice(cache.place)}"
        )
    return entry


def write_block(cache: Cache, block: Block, producer: Mapping[str, str]) -> int:
    """Commit one block: encode its files, publish them, name them in the ledger.

    Any number of processes may write the same block: the records of the first stay.

    Returns:
        How many bytes the files have; 0 if the block was committed before.

    Raises:
        ValueError: the number of records is not that of the block's rows, or no source entry names
            the images of the shard yet.
        OSError, StoreError: a file cannot be written; nothing is committed then.
    """
    shard = block.id.shard
    rows = cache.rows(shard)
    if len(block.topk.ids_BK) != len(rows):
        raise ValueError(f"got {len(block.topk.ids_BK)} records, expected {len(rows)}")
    source = cache.sources.of(shard)
    if source is None:
        raise ValueError(f"no source entry names the images of shard {shard}: commit it first")
    if is_committed(cache.place, block.id):  # nothing needs to be encoded then
        return 0
    files = encoded_files(cache.layout, cache.view_count, block)
    stored = tuple(StoredFile.of(key, data) for key, data in files.items())
    entry = BlockEntry(cache.owner, block.id, stored, source.sha256, producer, {})
    # If another writer was faster, its records stay, which are as good as these.
    cache.place.publish(block_key(block.id), encode_block(entry), files)
    return sum(file.size for file in stored)


def encoded_files(layout: Layout, view_count: int, block: Block) -> dict[str, bytes]:
    """The files that hold a block's records, by their keys.

    Raises:
        ValueError: records that have moments where the layout has none, or the other way round.
    """
    topk, shard = block.topk, block.id.shard
    if (topk.moments_B2 is None) is layout.moments:
        raise ValueError("records have moments where the cache keeps none, or the other way round")
    rows = layout.rows_of(shard)
    values = [
        (rows, topk.ids_BK),
        (rows, stored_logp(topk.logp_BK, layout.encoding)),
        (rows, topk.tail_BT),
        (layout.checks_of(shard), block.check),
    ]
    if topk.moments_B2 is not None:
        values.append((rows, topk.moments_B2))
    documents = descriptions(layout, view_count)
    return {
        shard_key(name, block.id): encode_shard(documents[name], name, block.id, own, value)
        for name, (own, value) in zip(layout.record_arrays, values, strict=True)
    }


def withdraw_block(cache: Cache, block: BlockId, folder: str) -> None:
    """Move a block to the quarantine, so that the next cache-teacher computes it again.

    Its entry may be a stranger's and name files of an array that this cache has not: they go, too.
    """
    files = [shard_key(name, block) for name in (*RECORD_ARRAYS, MOMENTS_ARRAY)]
    cache.place.withdraw(block_key(block), files, folder)
