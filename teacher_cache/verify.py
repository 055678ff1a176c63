"""Every byte of a cache against its ledger.

V views, N rows, S rows a shard.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from teacher_cache.arrays import shard_key, source_shard_key
from teacher_cache.descriptions import description_key
from teacher_cache.errors import CacheError, DamagedRecords
from teacher_cache.index_files import INDEX_ARRAYS, chunk_key
from teacher_cache.keys import STAGING
from teacher_cache.layout import RECORD_ARRAYS, SOURCE_ARRAY
from teacher_cache.ledger import (
    SAMPLE_KEY,
    BlockId,
    block_key,
    blocks_in,
    numbers_in,
    source_key,
    views_key,
)
from teacher_cache.slab import verified_files
from teacher_cache.store import (
    GROUP_KEY,
    Cache,
    committed_blocks,
    read_entry,
    wrong_descriptions,
)


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
    damage = [
        *(Damage(key, "is not what the manifest describes") for key in wrong_descriptions(cache)),
        *_wrong_sources(cache),
    ]
    grid, named = set(cache.blocks()), committed_blocks(cache.root)
    size = 0
    for found, read in cache.store.in_order(partial(_damaged_block, cache), sorted(grid & named)):
        damage += found
        size += read
    damage += [
        Damage(block_key(block), "names a block outside the cache", block)
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
        entry = read_entry(cache, block)
        if entry is None:
            return [], 0
        verified_files(cache, entry)
    except CacheError as error:
        return [Damage(block_key(block), str(error), block)], 0
    return [], sum(file.size for file in entry.files)


def _wrong_sources(cache: Cache) -> Iterator[Damage]:
    """Source entries that are damaged, or whose file is not the one that they name."""
    for shard in cache.sources.committed_shards():
        try:
            cache.sources.of(shard)
        except DamagedRecords as error:
            yield Damage(source_key(shard), str(error))


def _strays(cache: Cache) -> Iterator[str]:
    keys = list(cache.store.keys())
    named = committed_blocks(cache.root)  # after the listing: writers may be at work
    known = {GROUP_KEY, SAMPLE_KEY, f"{STAGING}/lock"}
    known |= {description_key(name) for name in (*RECORD_ARRAYS, SOURCE_ARRAY, *INDEX_ARRAYS)}
    known |= {chunk_key(name) for name in INDEX_ARRAYS}
    known |= {block_key(block) for block in named | blocks_in(keys)}
    known |= {shard_key(name, block) for name in RECORD_ARRAYS for block in named}
    shards = range(cache.layout.shards)
    known |= {source_key(shard) for shard in shards} | {source_shard_key(s) for s in shards}
    known |= {views_key(count) for count in numbers_in(keys, "views")}
    # what lies in staging, `abandoned` judges
    for key in keys:
        if key not in known and not key.startswith((f"{STAGING}/", "quarantine/")):
            yield key
