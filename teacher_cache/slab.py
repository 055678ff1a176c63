"""All rows of one view, read from their blocks, every byte checked against the ledger.

V views, N rows (images), K kept classes, T temperatures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from teacher_cache.arrays import decode_shard, shard_key
from teacher_cache.errors import CacheError, DamagedRecords, MissingRecords
from teacher_cache.layout import RECORD_ARRAYS, ROWS_PER_CHECK, Memory, private_memory
from teacher_cache.ledger import BlockId, LedgerEntry, StoredFile, crc32c_of, read_entry
from teacher_cache.store import Cache


@dataclass(frozen=True, slots=True, eq=False)
class Slab:
    """All rows of one view, in memory."""

    view: int
    ids_NK: np.ndarray
    logp_NK: np.ndarray
    tail_NT: np.ndarray
    check: np.ndarray
    absent_rows: frozenset[int]


def read_slab(cache: Cache, view: int, memory: Memory = private_memory) -> Slab:
    """Read and check all records of one view, a block after the other.

    Args:
        cache: the cache.
        view: which view.
        memory: where the records go.

    Raises:
        MissingRecords: the view is not in the cache, or has rows that are not filled.
        DamagedRecords: bytes that differ from what the ledger committed, naming view and rows.
    """
    entries = _entries_of(cache, view)
    layout = cache.layout()
    arrays = layout.arrays_in(memory(layout.nbytes))
    verified = cache.store.in_order(partial(_verified, cache), entries)
    for entry, files in zip(entries, verified, strict=True):
        try:
            # decoded from the very bytes that were verified
            for name, data in files.items():
                decode_shard(name, entry.block.shard, data, layout, arrays[name])
        except ValueError as error:
            if isinstance(error, CacheError):
                raise
            raise DamagedRecords(
                f"{place(cache, entry.block)}: cannot be decoded: {error}"
            ) from error
    absent = frozenset(row for entry in entries for row in entry.absent_rows)
    return slab_of(cache, view, arrays, absent)


def slab_of(
    cache: Cache, view: int, arrays: Mapping[str, np.ndarray], absent_rows: frozenset[int]
) -> Slab:
    """A view's arrays, as `Layout.arrays_in` laid them out, without their padding."""
    rows = len(cache.index)
    ids, logp, tail = (arrays[name][:rows] for name in ("ids", "logp", "tail"))
    check = arrays["check"][: -(-rows // ROWS_PER_CHECK), 0]
    return Slab(view, ids, logp, tail, check, absent_rows)


def _entries_of(cache: Cache, view: int) -> list[LedgerEntry]:
    if not 0 <= view < cache.view_count:
        raise MissingRecords(
            f"cache {cache.root} holds views 0-{cache.view_count - 1}, asked for view {view}"
        )
    blocks = [block for block in cache.blocks() if block.view == view]
    entries = []
    for block, entry in zip(
        blocks, cache.store.in_order(partial(read_entry, cache.root), blocks), strict=True
    ):
        if entry is None:
            raise MissingRecords(
                f"{place(cache, block)}: not filled yet: run the same cache-teacher command again"
            )
        entries.append(entry)
    return entries


def place(cache: Cache, block: BlockId) -> str:
    """How errors name a block: by its view and rows."""
    rows = cache.rows(block.shard)
    return f"cache {cache.root}, view {block.view}, rows {rows.start}-{rows.stop - 1}"


def expected_files(entry: LedgerEntry) -> dict[str, StoredFile | None]:
    """The files that a block must have, by key; None for one that its entry does not name."""
    stated = {file.path: file for file in entry.files}
    return {key: stated.get(key) for key in (shard_key(n, entry.block) for n in RECORD_ARRAYS)}


def damage_of(file: StoredFile | None, data: bytes | None) -> str | None:
    """What is wrong with a file's bytes (None: no such file); None where nothing is."""
    if file is None:
        return "is not named by its ledger entry"
    if data is None:
        return "is missing"
    if len(data) != file.size:
        return f"has {len(data)} bytes, {file.size} were committed"
    return None if crc32c_of(data) == file.crc32c else "is not what was committed"


def _verified(cache: Cache, entry: LedgerEntry) -> dict[str, bytes]:
    """The bytes of a block's files, by array."""
    found = {}
    for name, (key, file) in zip(RECORD_ARRAYS, expected_files(entry).items(), strict=True):
        data = cache.store.read(key)
        damage = damage_of(file, data)
        if data is None or damage:
            raise DamagedRecords(
                f"{place(cache, entry.block)}: {key} {damage}: run `verify-cache {cache.root} "
                "--repair`, then the same cache-teacher command, which computes just these rows "
                "anew"
            )
        found[name] = data
    return found
