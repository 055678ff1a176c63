"""The cache: record arrays whose blocks are committed by the ledger.

V views, N rows (images), K kept classes, T temperatures, S rows a shard. docs/cache-format.md
specifies the format; teacher_cache/ledger.py says what of it exists.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from teacher_cache.arrays import encode_shard, shard_key
from teacher_cache.bounded_json import read_object
from teacher_cache.descriptions import description_key, descriptions, encoded_description
from teacher_cache.encodings import stored_logp
from teacher_cache.errors import (
    CacheError,
    DamagedRecords,
    UnexpectedFile,
    UnexpectedFolder,
    shortened,
)
from teacher_cache.images import ImageIndex
from teacher_cache.index_files import index_documents, index_files, read_index
from teacher_cache.keys import MANIFEST
from teacher_cache.layout import RECORD_ARRAYS, ROWS_PER_CHECK, Layout
from teacher_cache.ledger import (
    MOST_ENTRY_BYTES,
    BlockEntry,
    BlockId,
    Owner,
    StoredFile,
    block_key,
    blocks_in,
    decode_block,
    encode_block,
    numbers_in,
    seal,
    unseal,
    views_key,
)
from teacher_cache.manifest import MOST_BLOCKS, MOST_BYTES, Manifest
from teacher_cache.place import Place, Root, place_of
from teacher_cache.record import TopK
from teacher_cache.sources import Sources


@dataclass(frozen=True, slots=True)
class Cache:
    """An open cache: where it lies, what it was made from, which images its rows are."""

    root: Root
    manifest: Manifest
    index: ImageIndex
    """The index as stored; its root is the cache's, so rebase it before reading images."""
    view_count: int
    former_view_counts: frozenset[int]
    """How many views it had before views were appended."""
    layout: Layout
    owner: Owner
    """What every entry of its ledger names."""
    sources: Sources = field(compare=False)
    """Which images its rows are, by the bytes that the teacher read."""
    wrong_views: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Views entries that are not to be believed, by their keys: what is wrong with each."""

    @property
    def store(self) -> Place:
        """What lies below the root."""
        return place_of(self.root)

    def blocks(self) -> list[BlockId]:
        """Every block of a full cache, views first: the order in which they are filled."""
        shards = range(self.layout.shards)
        return [BlockId(view, shard) for view in range(self.view_count) for shard in shards]

    def rows(self, shard: int) -> range:
        """The rows of one shard."""
        return self.layout.rows_of(shard)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The records of one block, rows in order."""

    id: BlockId
    topk: TopK
    check: np.ndarray
    """uint32 [ceil(rows / 32)] CRC-32 of the checked rows' pixels."""


def checked_row(view: int, entry: int) -> int:
    """The row whose pixels entry `entry` of view `view`'s `check` array holds."""
    return ROWS_PER_CHECK * entry + view % ROWS_PER_CHECK


def create_cache(root: Root, manifest: Manifest, index: ImageIndex) -> Cache:
    """Create an empty cache, or open the one that another process just made.

    Raises:
        CacheError: `root` exists and is not a cache.
    """
    root = root.resolve() if isinstance(root, Path) else root
    documents = descriptions(manifest.layout(), manifest.parsed_recipe().views.count)
    files = {description_key(name): encoded_description(d) for name, d in documents.items()}
    group = json.dumps(manifest.to_json(), indent=2).encode()
    place_of(root).create({**files, **index_files(index), MANIFEST: group})
    return open_cache(root)


def open_cache(root: Root) -> Cache:
    """Open a cache for reading or filling.

    Raises:
        CacheError: nothing there, no cache, a damaged manifest or index, or an array whose
            description is not what the manifest says.
    """
    cache = open_undescribed(root)
    for key, what in cache.wrong_views.items():
        raise DamagedRecords(f"{root}/{key} {what}: {_repair(root)}")
    if wrong := wrong_descriptions(cache):
        raise DamagedRecords(
            f"cache {root}: {wrong[0]} is not what the manifest describes, so that other readers "
            f"would take its records for something else: run `verify-cache {root} --repair`, "
            "which writes it anew and touches no record"
        )
    return cache


def open_undescribed(root: Root) -> Cache:
    """Open a cache whose arrays' `zarr.json` and views entries may be damaged.

    Raises:
        CacheError: nothing there, no cache, or a damaged manifest or index.
    """
    place = place_of(root)
    try:
        group = place.read(MANIFEST, at_most=MOST_BYTES)
    except UnexpectedFile as error:
        raise CacheError(
            f"{root}/{MANIFEST} {error.found}: restore it from a copy of this cache"
        ) from None
    if group is None:
        if any(True for _ in place.keys("ledger")):
            raise CacheError(
                f"{root}: the ledger of a cache is there, but not the {MANIFEST} that says what "
                "it was made from: restore that file from a copy of this cache; nothing else tells "
                "what it held"
            )
        raise CacheError(
            f"{root}: no cache there; fill one with `cache-teacher RECIPE --data DIR --out {root}`"
        )
    manifest = Manifest.from_json(group, source=str(root))
    index = _stored_index(root, manifest)
    layout, owner = manifest.layout(), manifest.owner
    appended = {count: _wrong_views(root, owner, layout, count) for count in _appended(root)}
    counts = {manifest.parsed_recipe().views.count}
    counts |= {count for count, wrong in appended.items() if wrong is None}
    view_count = max(counts)
    wrong = {views_key(count): what for count, what in appended.items() if what is not None}
    sources = Sources(str(root), place, layout, owner)
    former = frozenset(counts - {view_count})
    return Cache(root, manifest, index, view_count, former, layout, owner, sources, wrong)


def _stored_index(root: Root, manifest: Manifest) -> ImageIndex:
    place = place_of(root)
    try:
        index = read_index(place, Path(str(root)), rows=manifest.image_count)
    except UnexpectedFolder:
        raise
    except (ValueError, KeyError, TypeError) as error:  # an OSError is an outage, and no damage
        if isinstance(error, CacheError) and not isinstance(error, UnexpectedFile):
            raise
        what = f"{error.key} {error.found}" if isinstance(error, UnexpectedFile) else error
        raise _useless_index(root, f"cannot be read ({what})") from error
    if index.digest() != manifest.index_digest:
        raise _useless_index(root, "is damaged")
    return index


def _useless_index(root: Root, what: str) -> CacheError:
    return CacheError(
        f"{root}: its image index {what}: restore keys, labels, classes and class_ids from a copy, "
        "or from a new cache that the same cache-teacher command starts elsewhere; the records stay"
    )


def _appended(root: Root) -> set[int]:
    """The numbers of views that entries of the ledger are named after."""
    return numbers_in(place_of(root).keys("ledger/views"), "views")


def _wrong_views(root: Root, owner: Owner, layout: Layout, count: int) -> str | None:
    """Why a views entry is not to be believed; None where nothing is wrong with it."""
    try:
        data = place_of(root).read(views_key(count), at_most=MOST_ENTRY_BYTES)
        theirs, document = unseal(data or b"", "views")
    except (ValueError, KeyError, TypeError, UnexpectedFile) as error:
        return f"is damaged ({error})"
    if theirs != owner:
        return "belongs to another cache"
    if document.get("views") != count or count * layout.shards > MOST_BLOCKS:
        return f"speaks of {shortened(document.get('views'))} views"
    return None


def wrong_descriptions(cache: Cache) -> list[str]:
    """The keys of the arrays' `zarr.json` that are not what the manifest describes.

    After views were appended by a process that was killed, some may still give the former number.
    """
    wrong = []
    for name, document in expected_descriptions(cache).items():
        key = description_key(name)
        try:
            found = read_object(
                cache.store.read(key, at_most=MOST_BYTES) or b"", at_most=MOST_BYTES
            )
        except (ValueError, UnexpectedFile):
            found = None
        counts = (cache.view_count, *cache.former_view_counts)
        accepted = [_with_views(name, document, count) for count in counts]
        if found not in accepted:
            wrong.append(key)
    return wrong


def expected_descriptions(cache: Cache) -> dict[str, dict[str, object]]:
    """The `zarr.json` of every array of a cache, by the array's name."""
    return {**descriptions(cache.layout, cache.view_count), **index_documents(cache.index)}


def restore_descriptions(cache: Cache) -> None:
    """Write the arrays' `zarr.json` anew where they are not what they should be."""
    for name, document in expected_descriptions(cache).items():
        data = encoded_description(document)
        if cache.store.read(description_key(name), at_most=MOST_BYTES) != data:
            cache.store.replace(description_key(name), data)


def _with_views(name: str, document: Mapping[str, object], count: int) -> dict[str, object]:
    shape = document["shape"]
    assert isinstance(shape, list)
    return {**document, "shape": [count, *shape[1:]] if name in RECORD_ARRAYS else shape}


def append_views(cache: Cache, view_count: int) -> Cache:
    """Make room for more views; what is there stays as it is. Safe to repeat after a crash."""
    if view_count > cache.view_count:
        entry = seal("views", cache.owner, {"views": view_count})
        cache.store.add(views_key(view_count), entry)
    grown = open_undescribed(cache.root)
    restore_descriptions(grown)
    return grown


def is_committed(root: Root, block: BlockId) -> bool:
    """Whether the ledger names the block."""
    return place_of(root).exists(block_key(block))


def committed_blocks(root: Root) -> set[BlockId]:
    """Every block that the ledger names."""
    return blocks_in(place_of(root).keys("ledger"))


def missing_blocks(cache: Cache) -> list[BlockId]:
    """The blocks that the ledger lacks, in filling order."""
    committed = committed_blocks(cache.root)
    return [block for block in cache.blocks() if block not in committed]


def complete_views(cache: Cache) -> list[int]:
    """The views whose blocks the ledger names, every one."""
    incomplete = {block.view for block in missing_blocks(cache)}
    return [view for view in range(cache.view_count) if view not in incomplete]


def read_entry(cache: Cache, block: BlockId) -> BlockEntry | None:
    """The entry of a block, or None where it is not committed.

    Raises:
        DamagedRecords: an entry that is damaged, or another cache's.
    """
    key = block_key(block)
    data = cache.store.read(key, at_most=MOST_ENTRY_BYTES)
    if data is None:
        return None
    try:
        entry = decode_block(data, block)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, CacheError):
            raise
        raise DamagedRecords(
            f"ledger entry {cache.root}/{key} is damaged ({error}): {_repair(cache.root)}"
        ) from None
    if entry.owner != cache.owner:
        raise DamagedRecords(
            f"ledger entry {cache.root}/{key} belongs to another cache "
            f"({entry.owner.cache_id[:8]}, this one is {cache.owner.cache_id[:8]}): its records "
            f"were copied here from there: {_repair(cache.root)}"
        )
    expected = {shard_key(name, block) for name in RECORD_ARRAYS}
    if {file.key for file in entry.files} != expected:
        raise DamagedRecords(
            f"ledger entry {cache.root}/{key} names other files than those of its block: "
            f"{_repair(cache.root)}"
        )
    return entry


def _repair(root: Root) -> str:
    return (
        f"run `verify-cache {root} --repair`, then the same cache-teacher command, which computes "
        "what is missing anew"
    )


def require_in_place(cache: Cache) -> None:
    """Refuse to go on if another cache, or none, lies by now where this one was opened.

    Else records would be committed below a manifest that is not theirs, or below none.

    Raises:
        CacheError: it was moved, removed or replaced since it was opened.
    """
    group = cache.store.read(MANIFEST, at_most=MOST_BYTES)
    if group is not None and Manifest.from_json(group, source=str(cache.root)) == cache.manifest:
        return
    what = "was moved or removed" if group is None else "was replaced by another cache"
    raise CacheError(
        f"cache {cache.root} {what} while it was filled: put it back and run the same command "
        "again, or fill a new cache with another --out; no record can be added to what is there "
        "now"
    )


def write_block(cache: Cache, block: Block, producer: Mapping[str, str]) -> int:
    """Commit one block: encode its files, publish them, name them in the ledger.

    Any number of processes may write the same block: the first one's records stay, whole.

    Returns:
        How many bytes the files have; 0 where the block was committed before.

    Raises:
        ValueError: records of another shape than the block's rows, or of images that no source
            entry names yet.
        OSError, StoreError: it cannot be written; nothing is committed then.
    """
    shard = block.id.shard
    rows = cache.rows(shard)
    if len(block.topk.ids_BK) != len(rows):
        raise ValueError(f"got {len(block.topk.ids_BK)} records, expected {len(rows)}")
    source = cache.sources.of(shard)
    if source is None:
        raise ValueError(f"no source entry names the images of shard {shard}: commit it first")
    if is_committed(cache.root, block.id):
        return 0
    documents = descriptions(cache.layout, cache.view_count)
    logp = stored_logp(block.topk.logp_BK, cache.layout.encoding)
    values = (block.topk.ids_BK, logp, block.topk.tail_BT, block.check)
    places = (rows, rows, rows, cache.layout.checks_of(shard))
    files = {
        shard_key(name, block.id): encode_shard(documents[name], name, block.id, place, value)
        for name, place, value in zip(RECORD_ARRAYS, places, values, strict=True)
    }
    stored = tuple(StoredFile.of(key, data) for key, data in files.items())
    entry = BlockEntry(cache.owner, block.id, stored, source.sha256, producer, {})
    cache.store.publish(block_key(block.id), encode_block(entry), files)
    return sum(file.size for file in stored)


def withdraw_block(cache: Cache, block: BlockId, folder: str) -> None:
    """Take a block out, into quarantine, so that the next cache-teacher computes it anew."""
    files = [shard_key(name, block) for name in RECORD_ARRAYS]
    cache.store.withdraw(block_key(block), files, folder)


def absent_rows(cache: Cache) -> frozenset[int]:
    """Rows whose bytes are no image, as far as source entries say so today."""
    return cache.sources.absent_rows()
