"""The cache on disk: record arrays whose blocks are committed, checked and read by the ledger.

V views, N rows (images), K kept classes, T temperatures, S rows a shard. docs/cache-format.md
specifies the format; teacher_cache/ledger.py says what of it exists.
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from teacher_cache.arrays import (
    RECORD_ARRAYS,
    ROWS_PER_CHECK,
    Layout,
    Memory,
    create_arrays,
    decode_shard,
    encode_shard,
    open_array,
    private_memory,
    quiet_zarr,
    read_index,
    shard_key,
)
from teacher_cache.durable import sync_folder, sync_tree
from teacher_cache.errors import CacheError, DamagedRecords, MissingRecords
from teacher_cache.images import ImageIndex
from teacher_cache.ledger import (
    BlockId,
    LedgerEntry,
    StoredFile,
    commit_entry,
    committed_blocks,
    crc32c_of,
    is_committed,
    read_entry,
    remove_entry,
)
from teacher_cache.manifest import Manifest
from teacher_cache.staging import Held, hold_folder_beside, publishing, stage
from teacher_cache.topk import TopK


@dataclass(frozen=True, slots=True)
class Cache:
    """An open cache: where it lies, what it was made from, which images its rows are."""

    root: Path
    manifest: Manifest
    index: ImageIndex
    """The index as stored; its root is the cache's, so rebase it before reading images."""
    view_count: int
    rows_per_shard: int

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
        topk = self.manifest.parsed_recipe().topk
        return Layout(
            rows=len(self.index),
            rows_per_shard=self.rows_per_shard,
            k=topk.k,
            temperatures=len(topk.temperatures),
            class_count=self.manifest.class_count,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The records of one block, rows in order."""

    id: BlockId
    topk: TopK
    check: np.ndarray
    """uint32 [ceil(rows / 32)] CRC-32 of the checked rows' pixels."""
    absent_rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Slab:
    """All rows of one view, in memory."""

    view: int
    ids_NK: np.ndarray
    logp_NK: np.ndarray
    tail_NT: np.ndarray
    check: np.ndarray
    absent_rows: frozenset[int]


def checked_row(view: int, entry: int) -> int:
    """The row whose pixels entry `entry` of view `view`'s `check` array holds."""
    return ROWS_PER_CHECK * entry + view % ROWS_PER_CHECK


def create_cache(root: Path, manifest: Manifest, index: ImageIndex) -> Cache:
    """Create an empty cache, whole or not at all, or open the one that another process just made.

    Raises:
        CacheError: `root` exists and is not a cache.
    """
    root = root.resolve()
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = hold_folder_beside(root)
    try:
        create_arrays(temporary.path, manifest, index)
        sync_tree(temporary.path)
        temporary.path.rename(root)
        sync_folder(root.parent)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise CacheError(
                f"{root} is a mount point, which a cache cannot replace: choose a folder in it, "
                f"such as --out {root}/cache"
            ) from None
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        if not (root / "zarr.json").exists():
            raise CacheError(
                f"{root} exists and is not a cache: choose another --out, or empty it"
            ) from None
    finally:
        temporary.release()
    return open_cache(root)


def open_cache(root: Path) -> Cache:
    """Open a cache for reading or filling.

    Raises:
        CacheError: nothing there, no cache, or a damaged manifest or index.
    """
    if not (root / "zarr.json").is_file():
        raise CacheError(
            f"{root}: no cache there; fill one with `cache-teacher RECIPE --data DIR --out {root}`"
        )
    try:
        with quiet_zarr():
            manifest = Manifest.from_json(
                dict(zarr.open_group(root, mode="r").attrs), source=str(root)
            )
            index = read_index(root)
            # the fewest: a crash while views are appended may leave some arrays longer
            view_count = min(open_array(root, name).shape[0] for name in RECORD_ARRAYS)
    except (ValueError, OSError, KeyError) as error:
        if isinstance(error, CacheError):
            raise
        raise CacheError(f"{root}: cannot be read as a cache: {error}") from error
    if index.digest() != manifest.index_digest:
        raise CacheError(f"{root}: its image index is damaged: restore keys, labels and classes")
    rows_per_shard = int(manifest.recipe["storage"]["rows_per_shard"])
    return Cache(root, manifest, index, view_count, rows_per_shard)


def append_views(cache: Cache, view_count: int) -> Cache:
    """Make room for more views; what is there stays as it is. Safe to repeat after a crash."""
    if view_count > cache.view_count:
        with publishing(cache.root), quiet_zarr():
            for name in RECORD_ARRAYS:
                array = open_array(cache.root, name, mode="r+")
                if array.shape[0] < view_count:
                    array.resize((view_count, *array.shape[1:]))
    return open_cache(cache.root)


def missing_blocks(cache: Cache) -> list[BlockId]:
    """The blocks that the ledger lacks, in filling order."""
    committed = committed_blocks(cache.root)
    return [block for block in cache.blocks() if block not in committed]


def complete_views(cache: Cache) -> list[int]:
    """The views whose blocks the ledger names, every one."""
    incomplete = {block.view for block in missing_blocks(cache)}
    return [view for view in range(cache.view_count) if view not in incomplete]


def write_block(cache: Cache, block: Block, producer: Mapping[str, str]) -> None:
    """Commit one block: write its files aside, flush them, move them into place, name them.

    Any number of processes may write the same block: the first one's records stay, whole, and the
    others' are thrown away. A crash leaves files that the ledger does not name, which the next
    writer of the block replaces.

    Raises:
        ValueError: records of another shape than the block's rows.
        OSError: the disk is full or cannot be written; nothing is committed then.
    """
    rows = cache.rows(block.id.shard)
    if len(block.topk.ids_BK) != len(rows):
        raise ValueError(f"got {len(block.topk.ids_BK)} records, expected {len(rows)}")
    if is_committed(cache.root, block.id):
        return
    values = (block.topk.ids_BK, block.topk.logp_BK, block.topk.tail_BT, block.check)
    staged: dict[str, tuple[bytes, Held]] = {}
    try:
        for name, value in zip(RECORD_ARRAYS, values, strict=True):
            data = encode_shard(cache.root, block.id, rows, name, value)
            staged[shard_key(name, block.id)] = (data, stage(cache.root, data))
        with publishing(cache.root):
            if not is_committed(cache.root, block.id):
                files = _move_into_place(cache.root, staged)
                commit_entry(cache.root, LedgerEntry(block.id, files, block.absent_rows, producer))
    finally:
        for _, held in staged.values():
            held.release()


def drop_block(cache: Cache, block: BlockId) -> None:
    """Forget a block and remove its files, so that the next cache-teacher computes it anew."""
    with publishing(cache.root):
        remove_entry(cache.root, block)
        for name in RECORD_ARRAYS:
            (cache.root / shard_key(name, block)).unlink(missing_ok=True)


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
    for entry in entries:
        try:
            # decoded from the very bytes that were verified
            for name, data in _verified(cache, entry).items():
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
    entries = []
    for block in cache.blocks():
        if block.view == view:
            entry = read_entry(cache.root, block)
            if entry is None:
                raise MissingRecords(
                    f"{place(cache, block)}: not filled yet: run the same cache-teacher command "
                    "again"
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


def read_file(path: Path) -> bytes | None:
    """A file's bytes, or None where there is none."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def absent_rows(cache: Cache) -> frozenset[int]:
    """Rows that some committed block marks as absent: their image could not be read."""
    entries = (read_entry(cache.root, block) for block in committed_blocks(cache.root))
    return frozenset(row for entry in entries if entry for row in entry.absent_rows)


def _verified(cache: Cache, entry: LedgerEntry) -> dict[str, bytes]:
    """The bytes of a block's files, by array."""
    found = {}
    for name, (key, file) in zip(RECORD_ARRAYS, expected_files(entry).items(), strict=True):
        data = read_file(cache.root / key)
        damage = damage_of(file, data)
        if data is None or damage:
            raise DamagedRecords(
                f"{place(cache, entry.block)}: {key} {damage}: run `verify-cache {cache.root} "
                "--repair`, then the same cache-teacher command, which computes just these rows "
                "anew"
            )
        found[name] = data
    return found


def _move_into_place(
    root: Path, staged: Mapping[str, tuple[bytes, Held]]
) -> tuple[StoredFile, ...]:
    folders = set()
    for key, (data, held) in staged.items():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        held.path.replace(path)
        folders |= {root / folder for folder in Path(key).parents}
        if path.stat().st_size != len(data):
            raise OSError(errno.EIO, "a file on disk is shorter than what was written", str(path))
    for folder in folders:
        sync_folder(folder)
    return tuple(StoredFile(key, len(data), crc32c_of(data)) for key, (data, _) in staged.items())
