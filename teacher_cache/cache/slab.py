"""The records of one view, read from their blocks, every byte checked against the ledger.

V views, N rows (images), M rows that are kept, K kept classes, T temperatures.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from teacher_cache.cache.blocks import read_entry
from teacher_cache.cache.cache import Cache
from teacher_cache.errors import DamagedRecords, MissingRecords, repair_advice
from teacher_cache.format.arrays import decode_kept_rows, decode_shard, shard_key
from teacher_cache.format.layout import MOMENTS_ARRAY, Layout
from teacher_cache.parallel_map import mapped_ahead
from teacher_cache.record import ROWS_PER_CHECK
from teacher_cache.storage.keys import MANIFEST
from teacher_cache.storage.ledger import BlockEntry, BlockId

AHEAD = 2
"""Blocks of a disk that threads read and hash while the one before them is decoded."""


@dataclass(frozen=True, slots=True, eq=False)
class Slab:
    """The records of one view in memory: of all its rows, or of those that a process needs."""

    view: int
    ids_NK: np.ndarray
    logp_NK: np.ndarray
    tail_NT: np.ndarray
    check: np.ndarray
    """Of the whole view."""
    absent_rows: frozenset[int]
    """Of the whole view."""
    kept_M: np.ndarray | None = None
    """int64 [M] the rows whose records the arrays hold, ascending; None: all."""
    moments_N2: np.ndarray | None = None
    """Where the cache keeps them."""

    def positions_of(self, rows_B: np.ndarray) -> np.ndarray:
        """Where in the arrays of records some rows are: int64 [B].

        Raises:
            ValueError: a row that was not kept.
        """
        if self.kept_M is None:
            return rows_B
        found_B = np.searchsorted(self.kept_M, rows_B)
        if not np.array_equal(self.kept_M.take(found_B, mode="clip"), rows_B):
            raise ValueError(f"view {self.view}: asked for records of rows that were not kept")
        return found_B


def read_slab(cache: Cache, view: int, kept_M: np.ndarray | None = None) -> Slab:
    """Read and check all records of one view, a block after the other, and keep some or all.

    Args:
        cache: the cache.
        view: which view.
        kept_M: int64 [M] the rows to keep, ascending; None: all.

    Raises:
        MissingRecords: the view is not in the cache, or has rows that are not filled.
        DamagedRecords: bytes that differ from what the ledger committed, naming view and rows.
        ValueError: rows to keep that are not the view's, or not in ascending order.
    """
    layout, entries = cache.layout, _entries_of(cache, view)
    if kept_M is not None and not _is_ascending(kept_M, layout.rows):
        raise ValueError(f"the rows to keep are not in ascending order below {layout.rows}")
    arrays = layout.empty_arrays(None if kept_M is None else len(kept_M))
    for entry, files in zip(entries, _verified_ahead(cache, entries), strict=True):
        _decode(cache, entry, entry.block.shard, files, layout, arrays, kept_M)
    absent = frozenset(row for entry in entries for row in _absent_rows_of(cache, entry))
    return _slab_of(layout, view, arrays, absent, kept_M)


def read_block(cache: Cache, block: BlockId) -> Slab:
    """Read and check the records of one block alone; row 0 of its arrays is the block's first.

    Raises:
        MissingRecords: it is not filled.
        DamagedRecords: bytes that differ from what the ledger committed, naming view and rows.
    """
    entry = _committed(cache, block, read_entry(cache, block))
    return decoded_block(cache, entry, verified_files(cache, entry))


def decoded_block(cache: Cache, entry: BlockEntry, files: Mapping[str, bytes]) -> Slab:
    """The records of one block out of its verified files, by array.

    Raises:
        DamagedRecords: bytes that no writer of this format makes.
    """
    rows = cache.rows(entry.block.shard)
    layout = replace(cache.layout, rows=len(rows))
    arrays = layout.empty_arrays()
    _decode(cache, entry, 0, files, layout, arrays)
    return _slab_of(layout, entry.block.view, arrays, _absent_rows_of(cache, entry))


def absent_rows_in(cache: Cache, entry: BlockEntry, files: Mapping[str, bytes]) -> frozenset[int]:
    """The rows of a block that hold fill values, read off its records."""
    rows = cache.rows(entry.block.shard)
    layout = replace(cache.layout, rows=len(rows))
    arrays = layout.empty_arrays()
    _decode(cache, entry, 0, {"ids": files["ids"]}, layout, arrays)
    first = arrays["ids"][: len(rows), 0]
    absent = np.flatnonzero(first == np.iinfo(first.dtype).max) + rows.start
    return frozenset(absent.tolist())


def _decode(
    cache: Cache,
    entry: BlockEntry,
    shard: int,
    files: Mapping[str, bytes],
    layout: Layout,
    arrays: Mapping[str, np.ndarray],
    kept_M: np.ndarray | None = None,
) -> None:
    """Decode a block's files, by array, as the `shard`-th of some arrays.

    Of all but `check` the arrays hold the records of `kept_M` alone, if it is given.

    Raises:
        DamagedRecords: bytes that no writer of this format makes.
    """
    try:
        # decoded from the very bytes that were verified
        for name, data in files.items():
            if kept_M is None or name == "check":
                decode_shard(name, shard, data, layout, arrays[name])
            else:
                decode_kept_rows(name, shard, data, layout, kept_M, arrays[name])
    except ValueError as error:
        raise DamagedRecords(
            f"{block_name(cache, entry.block)}: cannot be decoded: {error}"
        ) from error


def _slab_of(
    layout: Layout,
    view: int,
    arrays: Mapping[str, np.ndarray],
    absent_rows: frozenset[int],
    kept_M: np.ndarray | None = None,
) -> Slab:
    """A view's arrays, as `Layout.empty_arrays` makes them, without their padding."""
    rows = layout.rows
    ids, logp, tail = (arrays[name][:rows] for name in ("ids", "logp", "tail"))
    check = arrays["check"][: -(-rows // ROWS_PER_CHECK), 0]
    moments = arrays[MOMENTS_ARRAY][:rows] if layout.moments else None
    return Slab(view, ids, logp, tail, check, absent_rows, kept_M, moments)


def _is_ascending(rows_M: np.ndarray, end: int) -> bool:
    """Whether they are distinct row numbers below `end`, in order."""
    inside = len(rows_M) == 0 or (rows_M[0] >= 0 and rows_M[-1] < end)
    return bool(inside and (rows_M[1:] > rows_M[:-1]).all())


def block_name(cache: Cache, block: BlockId) -> str:
    """How errors name a block: by its view and rows."""
    rows = cache.rows(block.shard)
    return f"cache {cache.place}, view {block.view}, rows {rows.start}-{rows.stop - 1}"


def verified_files(cache: Cache, entry: BlockEntry) -> dict[str, bytes]:
    """The bytes of a block's files, by array, of records whose images are known.

    Raises:
        DamagedRecords: a file that is not the one that the entry names, or records of other images
            than those of the source entry.
    """
    if wrong := wrong_source(cache, entry):
        raise DamagedRecords(
            f"{block_name(cache, entry.block)}: {wrong}: {repair_advice(cache.place)}"
        )
    return committed_files(cache, entry)


def committed_files(cache: Cache, entry: BlockEntry) -> dict[str, bytes]:
    """The bytes of a block's files, by array.

    Raises:
        DamagedRecords: a file that is not the one that the entry names.
    """
    stated = {file.key: file for file in entry.files}
    found = {}
    for name in cache.layout.record_arrays:
        file = stated[shard_key(name, entry.block)]
        data = cache.place.read(file.key, at_most=cache.layout.most_bytes(name))
        if (damage := file.damage(data)) or data is None:
            raise DamagedRecords(
                f"{block_name(cache, entry.block)}: {file.key} {damage}: "
                f"{repair_advice(cache.place)}"
            )
        found[name] = data
    return found


def wrong_source(cache: Cache, entry: BlockEntry) -> str | None:
    """What is wrong with the images that a block's entry names; None where nothing is."""
    source = cache.sources.of(entry.block.shard)
    if source is None:
        return "no source entry says which images its rows are"
    if source.sha256 != entry.source_sha256:
        return "its records are of other images than those that the source entry names"
    return None


def _entries_of(cache: Cache, view: int) -> list[BlockEntry]:
    if not 0 <= view < cache.view_count:
        raise MissingRecords(
            f"cache {cache.place} holds views 0-{cache.view_count - 1}, asked for view {view}"
        )
    blocks = [BlockId(view, shard) for shard in range(cache.layout.shards)]
    found = cache.place.in_order(partial(read_entry, cache), blocks)
    return [_committed(cache, *pair) for pair in zip(blocks, found, strict=True)]


def _committed(cache: Cache, block: BlockId, entry: BlockEntry | None) -> BlockEntry:
    if entry is None:
        raise MissingRecords(
            f"{block_name(cache, block)}: not filled yet: run the same cache-teacher command again"
        )
    return entry


def _absent_rows_of(cache: Cache, entry: BlockEntry) -> frozenset[int]:
    source = cache.sources.of(entry.block.shard)
    return source.absent_rows if source else frozenset()


def _verified_ahead(cache: Cache, entries: list[BlockEntry]) -> Iterator[dict[str, bytes]]:
    """The files of each block, read and hashed while the block before it is decoded.

    hashlib lets other threads run while it hashes. In a store, `in_order` reads further ahead.
    """
    read = partial(verified_files, cache)
    if cache.place.path_of(MANIFEST) is None:
        return cache.place.in_order(read, entries)
    return mapped_ahead(read, entries, threads=AHEAD, name="hash")
