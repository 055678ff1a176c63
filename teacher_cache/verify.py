"""Every byte of a cache against its ledger; and what is damaged taken out, to be computed anew.

V views, N rows, S rows a shard.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from teacher_cache.arrays import (
    INDEX_ARRAYS,
    array_documents,
    chunk_index,
    shard_key,
    views_described,
)
from teacher_cache.errors import CacheError, DamagedRecords
from teacher_cache.layout import RECORD_ARRAYS, ROWS_PER_CHECK
from teacher_cache.ledger import (
    BlockId,
    LedgerEntry,
    committed_blocks,
    crc32c_of,
    entry_key,
    is_committed,
    read_entry,
)
from teacher_cache.place import Root, place_of
from teacher_cache.staging import FOLDER
from teacher_cache.store import Cache, damage_of, drop_block, expected_files, read_origin

_ABSENT = 2**64 - 1
"""Offset and length, in a shard's index, of a chunk that was never written."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is not what was committed."""

    file: str
    """Its path below the cache."""
    what: str
    block: BlockId | None = None
    """None where no block is concerned: an array's description."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found; a cache is sound when all of it is empty."""

    damage: tuple[Damage, ...]
    missing: tuple[BlockId, ...]
    """Blocks that the ledger lacks: not filled yet."""
    strays: tuple[str, ...]
    """Files, by their paths below the cache, that no ledger entry names: what killed writers left,
    or others' files."""
    blocks: int
    bytes: int
    """How many bytes of records were read and checked."""

    @property
    def is_sound(self) -> bool:
        """Complete, undamaged, and nothing in it that does not belong."""
        return not (self.damage or self.missing or self.strays)


def verify(cache: Cache) -> Verification:
    """Read every shard, ledger entry and description of a cache, and compare."""
    damage = list(_wrong_descriptions(cache))
    grid, named = set(cache.blocks()), committed_blocks(cache.root)
    size = 0
    for found, read in cache.store.in_order(partial(_damaged_block, cache), sorted(grid & named)):
        damage += found
        size += read
    damage += [
        Damage(entry_key(block), "names a block outside the cache", block)
        for block in sorted(named - grid)
    ]
    strays = (*_strays(cache), *cache.store.abandoned())
    return Verification(
        tuple(damage), tuple(sorted(grid - named)), tuple(sorted(set(strays))), len(grid), size
    )


def repair(cache: Cache, found: Verification) -> None:
    """Drop damaged blocks and strays and restore descriptions; sound records stay untouched."""
    for block in sorted({damage.block for damage in found.damage if damage.block}):
        drop_block(cache, block)
    if wrong := [damage.file for damage in found.damage if damage.block is None]:
        documents = array_documents(cache.manifest, len(cache.index))
        for file in wrong:
            document = documents[file.partition("/")[0]]
            document["shape"][0] = cache.view_count
            cache.store.replace(file, json.dumps(document, indent=2).encode())
    cache.store.sweep()
    with cache.store.alone():
        for key in found.strays:
            owner = _block_of(key)
            if owner is None or not is_committed(cache.root, owner):  # it may be, by now
                cache.store.remove(key)


def restore_descriptions(root: Root) -> list[str]:
    """Write anew the record arrays' `zarr.json` that cannot be read at all; which they were.

    Without them a cache cannot be opened. The manifest says what they hold but the number of views,
    which the other arrays say, or else the ledger.

    Raises:
        CacheError: as `read_origin`.
    """
    manifest, index = read_origin(root)
    views: list[int] = []
    unreadable = []
    for name in RECORD_ARRAYS:
        try:
            views.append(views_described(root, name))
        except CacheError:
            unreadable.append(name)
    documents = array_documents(manifest, len(index)) if unreadable else {}
    views = views or [1 + max((block.view for block in committed_blocks(root)), default=-1)]
    for name in unreadable:
        documents[name]["shape"][0] = max(manifest.parsed_recipe().views.count, min(views))
        document = json.dumps(documents[name], indent=2).encode()
        place_of(root).replace(f"{name}/zarr.json", document)
    return [f"{name}/zarr.json" for name in unreadable]


def report(cache: Cache, found: Verification, *, seconds: float) -> dict[str, Any]:
    """The facts to print: counts, then damage by view and rows, in words."""

    def rows_of(block: BlockId | None) -> dict[str, Any]:
        if block is None:
            return {}
        rows = cache.rows(block.shard)
        return {"view": block.view, "rows": [rows.start, rows.stop - 1]}

    return {
        "cache": str(cache.root),
        "sound": found.is_sound,
        "blocks": found.blocks,
        "blocks missing": len(found.missing),
        "views incomplete": sorted({block.view for block in found.missing}),
        "damage": [
            {**rows_of(damage.block), "file": damage.file, "what": damage.what}
            for damage in found.damage
        ],
        "stray files": [f"{cache.root}/{key}" for key in found.strays],
        "bytes": found.bytes,
        "seconds": round(seconds, 3),
    }


def _damaged_block(cache: Cache, block: BlockId) -> tuple[list[Damage], int]:
    """What is wrong with a block that the ledger names, and the bytes it weighs."""
    try:
        entry = read_entry(cache.root, block)
    except DamagedRecords as error:
        return [Damage(entry_key(block), _reason(error), block)], 0
    if entry is None:
        return [], 0
    return list(_damaged_files(cache, entry)), sum(file.size for file in entry.files)


def _damaged_files(cache: Cache, entry: LedgerEntry) -> Iterator[Damage]:
    for key, file in expected_files(entry).items():
        data = cache.store.read(key)
        what = damage_of(file, data) or _wrong_chunks(cache, key, data or b"", entry.block)
        if what:
            yield Damage(key, what, entry.block)
    rows = cache.rows(entry.block.shard)
    if not all(row in rows for row in entry.absent_rows):
        yield Damage(entry_key(entry.block), "names absent rows of another block", entry.block)


def _wrong_chunks(cache: Cache, key: str, data: bytes, block: BlockId) -> str | None:
    """What is wrong inside a shard: its index of chunks at its end, and every chunk's CRC-32C."""
    shard_rows = cache.rows_per_shard
    chunk_rows = min(4096, shard_rows)
    count, rows = shard_rows // chunk_rows, len(cache.rows(block.shard))
    if key.startswith("check/"):
        chunk_rows, rows = chunk_rows // ROWS_PER_CHECK, -(-rows // ROWS_PER_CHECK)
    start = len(data) - 16 * count - 4
    try:
        index = chunk_index(data, count)
    except ValueError as error:
        return str(error)
    for chunk, (offset, length) in enumerate(index):
        if chunk * chunk_rows >= rows:
            if (offset, length) != (_ABSENT, _ABSENT):
                return f"holds a chunk {chunk} beyond its rows"
        elif not 4 <= length <= start - min(offset, start):
            return f"its index places chunk {chunk} outside the file"
        elif crc32c_of(data[offset : offset + length - 4]) != int.from_bytes(
            data[offset + length - 4 : offset + length], "little"
        ):
            return f"chunk {chunk} does not match its checksum"
    return None


def _wrong_descriptions(cache: Cache) -> Iterator[Damage]:
    """Record arrays whose `zarr.json` is not what the manifest asks for."""
    for name, document in array_documents(cache.manifest, len(cache.index)).items():
        found = json.loads(cache.store.read(f"{name}/zarr.json") or b"null")
        document["shape"][0] = found["shape"][0]  # views may have been appended
        if found != document:
            yield Damage(f"{name}/zarr.json", "is not what the manifest describes")


def _strays(cache: Cache) -> Iterator[str]:
    files = list(cache.store.keys())
    named = committed_blocks(cache.root)  # after the listing: writers may be at work
    known = {"zarr.json", f"{FOLDER}/lock"}
    known |= {f"{name}/zarr.json" for name in (*RECORD_ARRAYS, *INDEX_ARRAYS)}
    known |= {entry_key(block) for block in named}
    known |= {shard_key(name, block) for name in RECORD_ARRAYS for block in named}
    # the index's chunks are covered by its digest; what lies in staging, `abandoned` judges
    covered = (*(f"{name}/c/" for name in INDEX_ARRAYS), f"{FOLDER}/")
    for key in files:
        if key not in known and not key.startswith(covered):
            yield key


def _block_of(key: str) -> BlockId | None:
    """Whose shard a path below the cache is."""
    match key.split("/"):
        case (name, "c", view, shard, *_) if name in RECORD_ARRAYS and (view + shard).isdigit():
            block = BlockId(int(view), int(shard))
            return block if shard_key(name, block) == key else None
    return None


def _reason(error: DamagedRecords) -> str:
    return str(error.__context__ or error)
