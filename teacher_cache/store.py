"""The cache on disk: a Zarr v3 group of four record arrays and the image index.

V views, N rows (images), K kept classes, T temperatures, S rows a shard. docs/cache-format.md
specifies the format; teacher_cache/ledger.py says what of it exists.
"""

import errno
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from teacher_cache.durable import sync_file, sync_folder, sync_tree
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
)
from teacher_cache.manifest import Manifest
from teacher_cache.topk import TopK

RECORD_ARRAYS = ("ids", "logp", "tail", "check")
ROWS_PER_CHECK = 32
"""Row 32 j + (v mod 32) of view v is checked: 32 views check every image."""


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
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = root.with_name(f".{root.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        _create_arrays(temporary, manifest, index)
        sync_tree(temporary)
        temporary.rename(root)
        sync_folder(root.parent)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        if not (root / "zarr.json").exists():
            raise CacheError(
                f"{root} exists and is not a cache: choose another --out, or empty it"
            ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
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
        with _quiet_zarr():
            manifest = Manifest.from_json(
                dict(zarr.open_group(root, mode="r").attrs), source=str(root)
            )
            index = _read_index(root)
            # the fewest: a crash while views are appended may leave some arrays longer
            view_count = min(_open(root, name).shape[0] for name in RECORD_ARRAYS)
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
    with _quiet_zarr():
        for name in RECORD_ARRAYS:
            array = _open(cache.root, name, mode="r+")
            if array.shape[0] < view_count:
                array.resize((view_count, *array.shape[1:]))
    return open_cache(cache.root)


def missing_blocks(cache: Cache) -> list[BlockId]:
    """The blocks that the ledger lacks, in filling order."""
    committed = committed_blocks(cache.root)
    return [block for block in cache.blocks() if block not in committed]


def write_block(cache: Cache, block: Block, producer: Mapping[str, str]) -> None:
    """Commit one block: write its shards, flush them, re-read them, then name them in the ledger.

    Raises:
        ValueError: records of another shape than the block's rows.
        OSError: the disk is full or cannot be written; nothing is committed then.
    """
    rows = cache.rows(block.id.shard)
    if len(block.topk.ids_BK) != len(rows):
        raise ValueError(f"got {len(block.topk.ids_BK)} records, expected {len(rows)}")
    if is_committed(cache.root, block.id):
        return
    values = {
        "ids": block.topk.ids_BK,
        "logp": block.topk.logp_BK,
        "tail": block.topk.tail_BT,
        "check": block.check,
    }
    files = tuple(_write_shard(cache, block.id, name, value) for name, value in values.items())
    commit_entry(cache.root, LedgerEntry(block.id, files, block.absent_rows, producer))


def read_slab(cache: Cache, view: int) -> Slab:
    """Read and check all records of one view.

    Raises:
        MissingRecords: the view is not in the cache, or has rows that are not filled.
        DamagedRecords: bytes that differ from what the ledger committed, naming view and rows.
    """
    if not 0 <= view < cache.view_count:
        raise MissingRecords(
            f"cache {cache.root} holds views 0-{cache.view_count - 1}, asked for view {view}"
        )
    absent: set[int] = set()
    for block in cache.blocks():
        if block.view == view:
            absent.update(_verified_entry(cache, block).absent_rows)
    try:
        with _quiet_zarr():
            ids, logp, tail, check = (_open(cache.root, name)[view] for name in RECORD_ARRAYS)
    except (ValueError, OSError) as error:
        raise DamagedRecords(
            f"cache {cache.root}, view {view}: cannot be decoded: {error}"
        ) from error
    return Slab(view, ids, logp, tail, check, frozenset(absent))


def absent_rows(cache: Cache) -> frozenset[int]:
    """Rows that some committed block marks as absent: their image could not be read."""
    entries = (read_entry(cache.root, block) for block in committed_blocks(cache.root))
    return frozenset(row for entry in entries if entry for row in entry.absent_rows)


def _verified_entry(cache: Cache, block: BlockId) -> LedgerEntry:
    rows = cache.rows(block.shard)
    place = f"cache {cache.root}, view {block.view}, rows {rows.start}-{rows.stop - 1}"
    entry = read_entry(cache.root, block)
    if entry is None:
        raise MissingRecords(f"{place}: not filled yet: run the same cache-teacher command again")
    for file in entry.files:
        path = cache.root / file.path
        data = path.read_bytes() if path.is_file() else None
        if data is None or len(data) != file.size or crc32c_of(data) != file.crc32c:
            found = "is missing" if data is None else "is not what was committed"
            raise DamagedRecords(
                f"{place}: {file.path} {found}: delete "
                f"{cache.root}/ledger/{block.view}/{block.shard}.json and run the same "
                "cache-teacher command again, which computes just these rows anew"
            )
    return entry


def _write_shard(cache: Cache, block: BlockId, name: str, value: np.ndarray) -> StoredFile:
    columns = ("0",) if name != "check" else ()
    key = "/".join((name, "c", str(block.view), str(block.shard), *columns))
    path = cache.root / key
    path.unlink(missing_ok=True)  # zarr refuses to write over a damaged shard
    rows = cache.rows(block.shard)
    start, stop = rows.start, rows.stop
    if name == "check":
        start, stop = start // ROWS_PER_CHECK, -(-stop // ROWS_PER_CHECK)
    with _quiet_zarr():
        _open(cache.root, name, mode="r+")[block.view, start:stop] = value
    sync_file(path)
    for folder in (path.parent, path.parent.parent):
        sync_folder(folder)
    data = path.read_bytes()
    return StoredFile(key, len(data), crc32c_of(data))


def _create_arrays(root: Path, manifest: Manifest, index: ImageIndex) -> None:
    recipe = manifest.parsed_recipe()
    views, rows, k = recipe.views.count, len(index), recipe.topk.k
    shard = recipe.storage.rows_per_shard
    chunk = min(4096, shard)
    checks = -(-rows // ROWS_PER_CHECK)
    ids_type = "uint16" if manifest.class_count <= 65_535 else "uint32"
    with _quiet_zarr():
        group = zarr.create_group(store=root, zarr_format=3, attributes=manifest.to_json())

        def records(name: str, width: int, dtype: str, fill: float, serializer: Any) -> None:
            group.create_array(
                name,
                shape=(views, rows, width),
                shards=(1, shard, width),
                chunks=(1, chunk, width),
                dtype=dtype,
                fill_value=fill,
                serializer=serializer,
                compressors=[Crc32cCodec()],
            )

        pcodec = _pcodec()
        records("ids", k, ids_type, np.iinfo(ids_type).max, pcodec)
        records("logp", k, "float16", float("nan"), pcodec)
        records("tail", len(recipe.topk.temperatures), "float16", float("nan"), pcodec)
        group.create_array(
            "check",
            shape=(views, checks),
            shards=(1, shard // ROWS_PER_CHECK),
            chunks=(1, chunk // ROWS_PER_CHECK),
            dtype="uint32",
            fill_value=0,
            serializer=BytesCodec(),
            compressors=[Crc32cCodec()],
        )
        _write_index(group, index)


def _write_index(group: zarr.Group, index: ImageIndex) -> None:
    names = sorted(index.class_ids, key=lambda name: index.class_ids[name])
    arrays = {
        "keys": _joined(index.keys),
        "labels": index.labels,
        "classes": _joined(names),
        "class_ids": np.array([index.class_ids[name] for name in names], np.int64),
    }
    for name, value in arrays.items():
        group.create_array(name, data=value, chunks=(min(len(value), 1 << 20),))


def _read_index(root: Path) -> ImageIndex:
    keys, labels, classes, ids = (
        _open(root, name)[:] for name in ("keys", "labels", "classes", "class_ids")
    )
    class_ids = dict(zip(_split(classes), ids.tolist(), strict=True))
    return ImageIndex(root, _split(keys), labels, class_ids)


def _joined(names: tuple[str, ...] | list[str]) -> np.ndarray:
    """File names as bytes, each ended by NUL, which no file name contains."""
    return np.frombuffer(b"".join(os.fsencode(n) + b"\0" for n in names), np.uint8)


def _split(joined: np.ndarray) -> tuple[str, ...]:
    return tuple(os.fsdecode(name) for name in joined.tobytes().split(b"\0")[:-1])


def _open(root: Path, name: str, mode: Any = "r") -> Any:
    # A chunk of fill values must be written, too. The setting is not stored with the array, and
    # open_array(config=...) of zarr 3.1.6 ignores it.
    return zarr.open_array(root / name, mode=mode).with_config({"write_empty_chunks": True})


def _pcodec() -> Any:
    try:
        from zarr.codecs.numcodecs import PCodec

        return PCodec()
    except ImportError as error:
        raise CacheError(
            f"the cache's codec is not installed ({error}): pip install 'numcodecs[pcodec]'"
        ) from None


@contextmanager
def _quiet_zarr() -> Iterator[None]:
    """Silence the one warning that says what docs/cache-format.md says: pcodec is an extension."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
        yield
