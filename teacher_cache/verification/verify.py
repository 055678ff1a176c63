"""Every byte of a cache against its ledger, and every record against what a record must be.

V views, N rows, S rows a shard.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import google_crc32c
import numpy as np

from teacher_cache.cache.blocks import read_entry
from teacher_cache.cache.cache import Cache, open_undescribed, wrong_descriptions
from teacher_cache.cache.index_files import INDEX_ARRAYS, chunk_key
from teacher_cache.cache.slab import Slab, decoded_block
from teacher_cache.cache.teacher_sample import read_sample
from teacher_cache.errors import CacheError, DamagedRecords, UnexpectedFile, printable
from teacher_cache.format.arrays import chunk_index, shard_key, source_shard_key
from teacher_cache.format.descriptions import description_key
from teacher_cache.format.layout import SOURCE_ARRAY
from teacher_cache.record import ROWS_PER_CHECK
from teacher_cache.storage.keys import LOCK_KEY, MANIFEST, QUARANTINE, is_workbench
from teacher_cache.storage.ledger import (
    SAMPLE_KEY,
    BlockEntry,
    BlockId,
    block_key,
    blocks_in,
    numbers_in,
    source_key,
    views_key,
)
from teacher_cache.verification.invariants import Rules, fault_in_checks, fault_in_records
from teacher_cache.verification.moments import fault_in_moments

_ABSENT = 2**64 - 1
"""Offset and length, in a shard's index, of a chunk that was never written."""
_MOST_LOCK_BYTES = 1 << 20
"""The writers' lock says in a line who holds it."""
_SHARD = re.compile(
    r"(ids|logp|tail|moments)/c\.\d+\.\d+\.0|check/c\.\d+\.\d+|source/c\.\d+", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is not what was committed."""

    file: str
    """Its path below the cache."""
    what: str
    block: BlockId | None = None
    """None where no block is concerned: an array's description, say."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found; a cache is sound when there is no damage, stray or missing block."""

    damage: tuple[Damage, ...]
    missing: tuple[BlockId, ...]
    """Blocks that the ledger lacks: not filled yet."""
    unannounced: tuple[BlockId, ...]
    """Blocks of this cache, whole, whose view no entry of the ledger announces any more."""
    strays: tuple[str, ...]
    """Files of the format, by their keys, that no entry names: what killed writers left."""
    strangers: tuple[str, ...]
    """Everything else that lies in the folder: others' files, which nobody touches."""
    quarantined: int
    """Files that earlier repairs took out."""
    blocks: int
    bytes: int
    """How many bytes of records were read and checked."""

    @property
    def is_sound(self) -> bool:
        """Complete, undamaged, and nothing of the format in it that does not belong."""
        return not (self.damage or self.missing or self.unannounced or self.strays)


def verify(cache: Cache) -> Verification:
    """Read every shard, ledger entry and description of a cache, and compare."""
    keys = list(cache.place.keys())
    # Views may be appended while blocks are listed; each listed block then counts as announced.
    cache = open_undescribed(cache.place)
    grid, named = set(cache.blocks()), blocks_in(keys)
    damage = list(damage_beside_blocks(cache, keys))
    size, unannounced = 0, []
    for block, (found, read) in zip(
        sorted(named),
        cache.place.in_order(partial(checked_block, cache), sorted(named)),
        strict=True,
    ):
        damage += found
        size += read
        if block not in grid and not found and read:
            unannounced.append(block)
    strays, strangers = _beyond(cache, keys, named)
    return Verification(
        tuple(damage),
        tuple(sorted(grid - named)),
        tuple(unannounced),
        tuple(sorted({*strays, *cache.place.abandoned()})),
        tuple(sorted(strangers)),
        sum(key.startswith(f"{QUARANTINE}/") for key in keys),
        len(grid),
        size,
    )


def report(cache: Cache, found: Verification, *, seconds: float) -> dict[str, Any]:
    """The facts to print: counts, then damage by view and rows, in words."""

    def rows_of(block: BlockId | None) -> dict[str, Any]:
        if block is None:
            return {}
        rows = cache.rows(block.shard)
        return {"view": block.view, "rows": [rows.start, rows.stop - 1]}

    return {
        "cache": str(cache.place),
        "sound": found.is_sound,
        "blocks": found.blocks,
        "blocks missing": len(found.missing),
        "views incomplete": sorted({block.view for block in found.missing}),
        "damage": [
            {**rows_of(damage.block), "file": printable(damage.file), "what": damage.what}
            for damage in found.damage
        ],
        "views not announced": sorted({block.view for block in found.unannounced}),
        "stray files": [printable(f"{cache.place}/{key}") for key in found.strays],
        "others' files": [printable(f"{cache.place}/{key}") for key in found.strangers],
        "files in quarantine": found.quarantined,
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
    if views := facts["views not announced"]:
        lines.append(f"damaged  the ledger announces no view {', '.join(map(str, views))}")
    lines += [f"stray    {path}" for path in facts["stray files"]]
    lines += [f"others'  {path}: left alone" for path in facts["others' files"]]
    missing, blocks = facts["blocks missing"], facts["blocks"]
    if missing:
        views = ", ".join(map(str, facts["views incomplete"][:8]))
        more = ", ..." if len(facts["views incomplete"]) > 8 else ""
        lines.append(
            f"missing  {missing} of {blocks} blocks"
            + (f", in views {views}{more}" if views else "")
            + ": run the same cache-teacher command again"
        )
    if into := facts.get("quarantine"):
        lines.append(f"moved    {facts['moved']} files into {into}/")
    rate = facts["bytes"] / 1e6 / max(facts["seconds"], 1e-3)
    state = "sound" if facts["sound"] else "not complete"
    if facts.get("repaired"):
        state = "repaired: " + ("sound" if facts["sound"] else "what was damaged is missing now")
    elif facts["damage"] or facts["stray files"] or facts["views not announced"]:
        state = "not sound: --repair moves what is damaged or stray into quarantine"
    lines.append(
        f"{facts['cache']}: {blocks - missing} of {blocks} blocks, {facts['bytes']:,} bytes of "
        f"records in {facts['seconds']:.2f} s ({rate:,.0f} MB/s): {state}"
    )
    return "\n".join(lines)


def checked_block(cache: Cache, block: BlockId) -> tuple[list[Damage], int]:
    """What is wrong with a block that the ledger names, and the bytes it weighs."""
    if block.shard >= cache.layout.shards:
        return [Damage(block_key(block), "names a block outside the cache")], 0
    try:
        entry = read_entry(cache, block)
    except CacheError as error:
        return [Damage(block_key(block), _reason(error), block)], 0
    if entry is None:
        return [], 0
    files = {file.key: file for file in entry.files}
    damage, data = [], {}
    for name in cache.layout.record_arrays:
        key = shard_key(name, block)
        try:
            found = cache.place.read(key, at_most=cache.layout.most_bytes(name))
            what = files[key].damage(found)
        except UnexpectedFile as error:
            found, what = None, error.found
        data[name] = found or b""
        if what := what or _wrong_chunks(cache, name, data[name], block):
            damage.append(Damage(key, what, block))
    if not damage and (what := _wrong_content(cache, entry, data)):
        damage = [Damage(block_key(block), what, block)]
    return damage, 0 if damage else sum(file.size for file in entry.files)


def _wrong_content(cache: Cache, entry: BlockEntry, files: Mapping[str, bytes]) -> str | None:
    """What is wrong with the records of a block whose files are those that were committed."""
    try:
        source = cache.sources.of(entry.block.shard)
    except CacheError:
        source = None
    if source is None:  # `damage_beside_blocks` reports it: the block itself may be sound
        return None
    if source.sha256 != entry.source_sha256:
        return "names other images than the source entry of its rows"
    try:
        return _fault(cache, entry.block, decoded_block(cache, entry, files))
    except DamagedRecords as error:
        return _reason(error)


def _fault(cache: Cache, block: BlockId, records: Slab) -> str | None:
    """The first record of a block that no teacher can have given, in words."""
    recipe, rows = cache.manifest.parsed_recipe(), cache.rows(block.shard)
    rules = Rules(cache.layout.class_count, recipe.topk.temperatures, recipe.storage.encoding)
    absent = np.isin(np.arange(rows.start, rows.stop), list(records.absent_rows))
    fault = fault_in_records(
        records.ids_NK, records.logp_NK, records.tail_NT, absent, rules
    ) or fault_in_checks(records.check, block.view, absent)
    if not fault and records.moments_N2 is not None:
        fault = fault_in_moments(records.logp_NK, records.moments_N2, absent, rules)
    return (
        f"names records that cannot be: row {rows.start + fault.row} has {fault.what}"
        if fault
        else None
    )


def _wrong_chunks(cache: Cache, name: str, data: bytes, block: BlockId) -> str | None:
    """What is wrong inside a shard: its index of chunks at its end, and every chunk's CRC-32C.

    Retort's own readers compare the whole file's SHA-256; others go by these.
    """
    layout = cache.layout
    chunk_rows, rows = layout.chunk_rows, len(cache.rows(block.shard))
    count = layout.rows_per_shard // chunk_rows
    if name == "check":
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
        elif google_crc32c.value(data[offset : offset + length - 4]) != int.from_bytes(
            data[offset + length - 4 : offset + length], "little"
        ):
            return f"chunk {chunk} does not match its checksum"
    return None


def damage_beside_blocks(cache: Cache, keys: Collection[str]) -> Iterator[Damage]:
    """Descriptions, views entries, the writers' lock, the sample, and the images' checksums."""
    for key in wrong_descriptions(cache):
        yield Damage(key, "is not what the manifest describes")
    for key, what in cache.wrong_views.items():
        yield Damage(key, what)
    checks: list[tuple[str, Callable[[], object]]] = [
        (LOCK_KEY, partial(cache.place.read, LOCK_KEY, at_most=_MOST_LOCK_BYTES)),
        (SAMPLE_KEY, partial(read_sample, cache)),
    ]
    shards = numbers_in(keys, "source")
    checks += [(source_key(shard), partial(cache.sources.of, shard)) for shard in sorted(shards)]
    for key, read in checks:
        try:
            read()
        except CacheError as error:
            yield Damage(key, _reason(error))
    with_records = {block.shard for block in blocks_in(keys)}
    if with_records and SAMPLE_KEY not in keys:
        yield Damage(SAMPLE_KEY, "is missing, though the cache has records")
    for shard in sorted(with_records - shards):
        # A writer may have put it after the listing of `source/` and before that of the blocks.
        if shard < cache.layout.shards and not cache.place.exists(source_key(shard)):
            yield Damage(source_key(shard), "is missing, though the shard has records")


def _beyond(cache: Cache, keys: list[str], named: set[BlockId]) -> tuple[list[str], list[str]]:
    """Keys that no entry names: first those that look like the format's, then all others."""
    shards, arrays = range(cache.layout.shards), cache.layout.record_arrays
    known = {MANIFEST, SAMPLE_KEY, LOCK_KEY}
    known |= {description_key(name) for name in (*arrays, SOURCE_ARRAY, *INDEX_ARRAYS)}
    known |= {chunk_key(name) for name in INDEX_ARRAYS}
    known |= {block_key(block) for block in named}
    # Writers may commit while keys are listed: a block that is committed by now is no stray.
    known |= {shard_key(name, block) for name in arrays for block in named}
    known |= {source_key(shard) for shard in shards}
    known |= {views_key(count) for count in numbers_in(keys, "views")}
    known |= {source_shard_key(shard) for shard in numbers_in(keys, "source")}
    strays, strangers = [], []
    for key in keys:
        if key in known or key.startswith(f"{QUARANTINE}/"):
            continue
        if _SHARD.fullmatch(key):
            if not is_named(cache, key):
                strays.append(key)
        elif not is_workbench(key):  # `abandoned` tells which of its files killed writers left
            strangers.append(key)
    return strays, strangers


def is_named(cache: Cache, key: str) -> bool:
    """Whether an entry of the ledger names the shard at a key by now."""
    name, _, place = key.partition("/c.")
    numbers = [int(part) for part in place.split(".")]
    if name == SOURCE_ARRAY:
        return cache.place.exists(source_key(numbers[0]))
    return cache.place.exists(block_key(BlockId(numbers[0], numbers[1])))


def _reason(error: CacheError) -> str:
    if isinstance(error, UnexpectedFile):
        return error.found
    return str(error.__context__ or error)
