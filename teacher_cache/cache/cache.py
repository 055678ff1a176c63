"""The cache: arrays of records, of which those blocks exist that the ledger names.

V views, N rows (images), K kept classes, T temperatures, S rows a shard. docs/cache-format.md
specifies the format, and teacher_cache/storage/ledger.py the entries of the ledger.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from teacher_cache.bounded_json import read_object
from teacher_cache.cache.index_files import index_documents, index_files, read_index
from teacher_cache.cache.sources import Sources
from teacher_cache.errors import (
    CacheError,
    DamagedRecords,
    UnexpectedFile,
    UnexpectedFolder,
    repair_advice,
    shortened,
)
from teacher_cache.format.descriptions import description_key, descriptions, encoded_description
from teacher_cache.format.layout import MOMENTS_ARRAY, RECORD_ARRAYS, Layout
from teacher_cache.format.manifest import MOST_BLOCKS, MOST_BYTES, Manifest
from teacher_cache.images.index import ImageIndex
from teacher_cache.storage.keys import MANIFEST
from teacher_cache.storage.ledger import (
    MOST_ENTRY_BYTES,
    BlockId,
    Owner,
    numbers_in,
    seal,
    unseal,
    views_key,
)
from teacher_cache.storage.place import Place


@dataclass(frozen=True, slots=True)
class Cache:
    """An open cache: where it lies, what it was made from, which images its rows are."""

    place: Place
    """Where it lies; `str` of it is what a user typed."""
    manifest: Manifest
    index: ImageIndex
    """The index as stored. Its root is the cache's, so `rebase` it before images are read."""
    view_count: int
    former_view_counts: frozenset[int]
    """How many views the cache had before views were appended, each time."""
    layout: Layout
    owner: Owner
    """The id and manifest digest that every entry of its ledger names."""
    sources: Sources = field(compare=False)
    """Which images its rows are, by checksums of the bytes that the teacher read."""
    wrong_views: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Key -> what is wrong, of each entry of appended views that cannot be believed."""

    def blocks(self) -> list[BlockId]:
        """Every block of a full cache, view by view: the order in which they are filled."""
        shards = range(self.layout.shards)
        return [BlockId(view, shard) for view in range(self.view_count) for shard in shards]

    def rows(self, shard: int) -> range:
        """The rows of one shard."""
        return self.layout.rows_of(shard)


def create_cache(place: Place, manifest: Manifest, index: ImageIndex) -> Cache:
    """Create an empty cache, or open the one that another process has just created.

    Raises:
        CacheError: other files are there.
    """
    documents = descriptions(manifest.layout(), manifest.parsed_recipe().views.count)
    files = {description_key(name): encoded_description(d) for name, d in documents.items()}
    group = json.dumps(manifest.to_json(), indent=2).encode()
    place.create({**files, **index_files(index), MANIFEST: group})
    return open_cache(place)


def open_cache(place: Place) -> Cache:
    """Open a cache for reading or filling.

    Raises:
        CacheError: there is nothing, or no cache; the manifest or the index is damaged; or the
            `zarr.json` of an array is not what the manifest says.
    """
    cache = open_undescribed(place)
    for key, what in cache.wrong_views.items():  # the first one is enough
        raise DamagedRecords(f"{place}/{key} {what}: {repair_advice(place)}")
    if wrong := wrong_descriptions(cache):
        raise DamagedRecords(
            f"cache {place}: {wrong[0]} is not what the manifest describes, so that other readers "
            f"would take its records for something else: run `verify-cache {place} --repair`, "
            "which writes it anew and touches no record"
        )
    return cache


def open_undescribed(place: Place) -> Cache:
    """Open a cache whose arrays' `zarr.json` and entries of appended views may be damaged.

    Raises:
        CacheError: there is nothing, or no cache, or the manifest or the index is damaged.
    """
    try:
        group = place.read(MANIFEST, at_most=MOST_BYTES)
    except UnexpectedFile as error:
        raise CacheError(
            f"{place}/{MANIFEST} {error.found}: restore it from a copy of this cache"
        ) from None
    if group is None:
        if any(True for _ in place.keys("ledger")):
            raise CacheError(
                f"{place}: the ledger of a cache is there, but not the {MANIFEST} that says what "
                "it was made from: restore that file from a copy of this cache; nothing else tells "
                "what it held"
            )
        raise CacheError(
            f"{place}: no cache there; fill one with `cache-teacher RECIPE --data DIR "
            f"--out {place}`"
        )
    manifest = Manifest.from_json(group, source=str(place))
    index = _stored_index(place, manifest)
    layout, owner = manifest.layout(), manifest.owner
    appended = {count: _wrong_views(place, owner, layout, count) for count in _appended(place)}
    counts = {manifest.parsed_recipe().views.count}
    counts |= {count for count, wrong in appended.items() if wrong is None}
    view_count = max(counts)
    wrong = {views_key(count): what for count, what in appended.items() if what is not None}
    sources = Sources(str(place), place, layout, owner)
    former = frozenset(counts - {view_count})
    return Cache(place, manifest, index, view_count, former, layout, owner, sources, wrong)


def _stored_index(place: Place, manifest: Manifest) -> ImageIndex:
    try:
        index = read_index(place, Path(str(place)), rows=manifest.image_count)
    except UnexpectedFolder:  # it is an UnexpectedFile, too, but its own message says more
        raise
    # An OSError passes through: a store that cannot be read says nothing of the index.
    except (ValueError, KeyError, TypeError, UnexpectedFile) as error:
        what = f"{error.key} {error.found}" if isinstance(error, UnexpectedFile) else error
        raise _useless_index(place, f"cannot be read ({what})") from error
    if index.digest() != manifest.index_digest:
        raise _useless_index(place, "is damaged")
    return index


def _useless_index(place: Place, what: str) -> CacheError:
    return CacheError(
        f"{place}: its image index {what}: restore keys, labels, classes and class_ids from a "
        "copy, or from a new cache that the same cache-teacher command starts elsewhere; the "
        "records stay"
    )


def _appended(place: Place) -> set[int]:
    """The numbers of views that the ledger's entries of appended views have as their names."""
    return numbers_in(place.keys("ledger/views"), "views")


def _wrong_views(place: Place, owner: Owner, layout: Layout, count: int) -> str | None:
    """What is wrong with an entry of appended views; None if nothing is."""
    try:
        data = place.read(views_key(count), at_most=MOST_ENTRY_BYTES)
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

    A former number of views in them is accepted: a process that appended views may have been killed
    before it wrote all of them.
    """
    wrong = []
    for name, document in expected_descriptions(cache).items():
        key = description_key(name)
        try:
            found = read_object(
                cache.place.read(key, at_most=MOST_BYTES) or b"", at_most=MOST_BYTES
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
    """Rewrite each array's `zarr.json` that is not what it should be."""
    for name, document in expected_descriptions(cache).items():
        data = encoded_description(document)
        if cache.place.read(description_key(name), at_most=MOST_BYTES) != data:
            cache.place.replace(description_key(name), data)


def _with_views(name: str, document: Mapping[str, object], count: int) -> dict[str, object]:
    shape = document["shape"]
    assert isinstance(shape, list)
    has_views = name in (*RECORD_ARRAYS, MOMENTS_ARRAY)
    return {**document, "shape": [count, *shape[1:]] if has_views else shape}


def append_views(cache: Cache, view_count: int) -> Cache:
    """Make room for more views; records stay as they are. After a crash it can be repeated."""
    if view_count > cache.view_count:
        entry = seal("views", cache.owner, {"views": view_count})
        cache.place.add(views_key(view_count), entry)
    grown = open_undescribed(cache.place)
    restore_descriptions(grown)
    return grown


def require_in_place(cache: Cache) -> None:
    """Refuse to go on if this cache is no longer where it was opened.

    Records would else be committed below another cache's manifest, or below none.

    Raises:
        CacheError: the cache was moved, removed or replaced since it was opened.
    """
    group = cache.place.read(MANIFEST, at_most=MOST_BYTES)
    if group is not None and Manifest.from_json(group, source=str(cache.place)) == cache.manifest:
        return
    what = "was moved or removed" if group is None else "was replaced by another cache"
    raise CacheError(
        f"cache {cache.place} {what} while it was filled: put it back and run the same command "
        "again, or fill a new cache with another --out; no record can be added to what is there "
        "now"
    )


def absent_rows(cache: Cache) -> frozenset[int]:
    """The rows whose bytes are no image, according to the source entries that there are now."""
    return cache.sources.absent_rows()
