"""Every byte of a cache against its ledger.

V views, N rows, S rows a shard.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from teacher_cache.arrays import (
    INDEX_ARRAYS,
    array_documents,
    chunk_index,
    shard_key,
)
from teacher_cache.errors import DamagedRecords
from teacher_cache.layout import RECORD_ARRAYS, ROWS_PER_CHECK
from teacher_cache.ledger import (
    BlockId,
    LedgerEntry,
    committed_blocks,
    crc32c_of,
    entry_key,
    read_entry,
)
from teacher_cache.slab import damage_of, expected_files
from teacher_cache.staging import FOLDER
from teacher_cache.store import Cache

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


def spelled(facts: Mapping[str, Any]) -> str:
    """A report in lines for people: damage, strays, what is missing, and the sum."""
    lines = []
    for damage in facts["damage"]:
        place = ""
        if "view" in damage:
            place = f"view {damage['view']}, rows {damage['rows'][0]}-{damage['rows'][1]}: "
        lines.append(f"damaged  {place}{damage['file']} {damage['what']}")
    lines += [f"stray    {path}" for path in facts["stray files"]]
    missing, blocks = facts["blocks missing"], facts["blocks"]
    if missing:
        views = ", ".join(map(str, facts["views incomplete"][:8]))
        more = ", ..." if len(facts["views incomplete"]) > 8 else ""
        lines.append(
            f"missing  {missing} of {blocks} blocks"
            + (f", in views {views}{more}" if views else "")
            + ": run the same cache-teacher command again"
        )
    rate = facts["bytes"] / 1e6 / max(facts["seconds"], 1e-3)
    state = "sound" if facts["sound"] else "not complete"
    if facts.get("repaired"):
        state = "repaired: " + ("sound" if facts["sound"] else "what was damaged is missing now")
    elif facts["damage"] or facts["stray files"]:
        state = "not sound: --repair drops what is damaged or stray"
    lines.append(
        f"{facts['cache']}: {blocks - missing} of {blocks} blocks, {facts['bytes']:,} bytes of "
        f"records in {facts['seconds']:.2f} s ({rate:,.0f} MB/s): {state}"
    )
    return "\n".join(lines)


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


def _reason(error: DamagedRecords) -> str:
    return str(error.__context__ or error)
