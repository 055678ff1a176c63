"""The Zarr side of a cache: four record arrays, and the image index as four more.

Everything that knows zarr-python is here. docs/cache-format.md specifies the bytes.
"""

import json
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import zarr
from zarr.buffer.cpu import Buffer
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.storage import MemoryStore

from teacher_cache.errors import CacheError
from teacher_cache.images import ImageIndex
from teacher_cache.ledger import BlockId, crc32c_of
from teacher_cache.manifest import Manifest
from teacher_cache.place import Root, place_of

RECORD_ARRAYS = ("ids", "logp", "tail", "check")
INDEX_ARRAYS = ("keys", "labels", "classes", "class_ids")
ROWS_PER_CHECK = 32
"""Row 32 j + (v mod 32) of view v is checked: 32 views check every image."""


def shard_key(name: str, block: BlockId) -> str:
    """The path, below the cache, of one array's shard of a block."""
    columns = ("0",) if name != "check" else ()
    return "/".join((name, "c", str(block.view), str(block.shard), *columns))


def encode_shard(root: Root, block: BlockId, rows: range, name: str, value: np.ndarray) -> bytes:
    """One shard's bytes, as zarr would write them to disk."""
    start, stop = rows.start, rows.stop
    if name == "check":
        start, stop = start // ROWS_PER_CHECK, -(-stop // ROWS_PER_CHECK)
    files: dict[str, Any] = {"zarr.json": _description(root, name)}
    with quiet_zarr():
        open_array(MemoryStore(files), mode="r+")[block.view, start:stop] = value
    return bytes(files[shard_key(name, block).removeprefix(f"{name}/")].to_bytes())


def decode_array(name: str, shards: Sequence[bytes], layout: "Layout") -> np.ndarray:
    """All rows of one array of one view, out of its shards' bytes, in order.

    Zarr's arithmetic by hand: of bytes whose checksums were just compared it need not be asked how
    they are laid out, and 300 chunks cost it more than decoding them does.

    Raises:
        ValueError: bytes that are no such shards.
    """
    entries = ROWS_PER_CHECK if name == "check" else 1
    rows, shard_rows = -(-layout.rows // entries), layout.rows_per_shard // entries
    chunk_rows = min(4096, layout.rows_per_shard) // entries
    width, dtype = layout.width_and_type(name)
    values = np.empty((-(-rows // chunk_rows) * chunk_rows, width), dtype)
    for shard, data in enumerate(shards):
        for chunk, (offset, length) in enumerate(chunk_index(data, shard_rows // chunk_rows)):
            start = shard * shard_rows + chunk * chunk_rows
            if start < rows:
                out = values[start : start + chunk_rows].reshape(-1)
                _decode_chunk(name, data[offset : offset + length - 4], out)
    return values[:rows, 0] if name == "check" else values[:rows]


def chunk_index(data: bytes, count: int) -> list[tuple[int, int]]:
    """Offset and length of each inner chunk, from a shard's end.

    Raises:
        ValueError: the index is cut off, or does not match its CRC-32C.
    """
    start = len(data) - 16 * count - 4
    index = data[max(start, 0) : -4]
    if start < 0 or crc32c_of(index) != int.from_bytes(data[-4:], "little"):
        raise ValueError("its index of chunks is damaged")
    return list(struct.iter_unpack("<QQ", index))


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of one view's arrays, as the manifest tells it."""

    rows: int
    rows_per_shard: int
    k: int
    temperatures: int
    class_count: int

    def width_and_type(self, name: str) -> tuple[int, np.dtype[Any]]:
        """Columns and dtype of an array."""
        ids_type = "<u2" if self.class_count <= 65_535 else "<u4"
        width, dtype = {
            "ids": (self.k, ids_type),
            "logp": (self.k, "<f2"),
            "tail": (self.temperatures, "<f2"),
            "check": (1, "<u4"),
        }[name]
        return width, np.dtype(dtype)


def _decode_chunk(name: str, data: bytes, out: np.ndarray) -> None:
    if name == "check":
        out[:] = np.frombuffer(data, "<u4")
        return
    try:
        from pcodec import standalone

        progress = standalone.simple_decompress_into(data, out)
    except ImportError as error:
        raise _not_installed(error) from None
    except (RuntimeError, TypeError) as error:
        raise ValueError(str(error)) from None
    if progress.n_processed != len(out):
        raise ValueError(f"a chunk of {name} holds {progress.n_processed} values, not {len(out)}")


def _description(root: Root, name: str) -> Buffer:
    data = place_of(root).read(f"{name}/zarr.json")
    if data is None:
        raise CacheError(
            f"{root}: {name}/zarr.json is missing: run `verify-cache {root} --repair`, "
            "which writes it anew"
        )
    return Buffer.from_bytes(data)


def views_described(root: Root, name: str) -> int:
    """For how many views a record array's `zarr.json` says there is room.

    Raises:
        CacheError: it is missing or cannot be read.
    """
    try:
        return int(json.loads(_description(root, name).to_bytes())["shape"][0])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        if isinstance(error, CacheError):
            raise
        raise CacheError(
            f"{root}: {name}/zarr.json cannot be read ({error}): run `verify-cache {root} "
            "--repair`, which writes it anew"
        ) from None


def grown(description: bytes, view_count: int) -> bytes:
    """The `zarr.json` of a record array with room for at least so many views."""
    document = json.loads(description)
    if document["shape"][0] >= view_count:
        return description
    document["shape"][0] = view_count
    return json.dumps(document, indent=2).encode()


def first_files(manifest: Manifest, index: ImageIndex) -> dict[str, bytes]:
    """The group, with room for the recipe's views, and the index: a new cache's files by key."""
    files: dict[str, Any] = {}
    with quiet_zarr():
        group = zarr.create_group(
            store=MemoryStore(files), zarr_format=3, attributes=manifest.to_json()
        )
        _create_records(group, manifest, len(index))
        _write_index(group, index)
    return {key: bytes(data.to_bytes()) for key, data in files.items()}


def _create_records(group: zarr.Group, manifest: Manifest, rows: int) -> None:
    recipe = manifest.parsed_recipe()
    views, k, shard = recipe.views.count, recipe.topk.k, recipe.storage.rows_per_shard
    chunk = min(4096, shard)
    checks = -(-rows // ROWS_PER_CHECK)
    ids_type = "uint16" if manifest.class_count <= 65_535 else "uint32"

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


def array_documents(manifest: Manifest, rows: int) -> dict[str, Any]:
    """The `zarr.json` of each record array, as `first_files` has it."""
    files: dict[str, Any] = {}
    with quiet_zarr():
        _create_records(zarr.create_group(MemoryStore(files), zarr_format=3), manifest, rows)
    return {name: json.loads(files[f"{name}/zarr.json"].to_bytes()) for name in RECORD_ARRAYS}


def read_index(root: Root) -> ImageIndex:
    """The image index as stored.

    Raises:
        ValueError, OSError, KeyError: it cannot be read.
    """
    keys, labels, classes, ids = (
        open_array(root, name)[:] for name in ("keys", "labels", "classes", "class_ids")
    )
    class_ids = dict(zip(_split(classes), ids.tolist(), strict=True))
    return ImageIndex(Path(str(root)), _split(keys), labels, class_ids)


def _joined(names: tuple[str, ...] | list[str]) -> np.ndarray:
    """File names as bytes, each ended by NUL, which no file name contains."""
    return np.frombuffer(b"".join(os.fsencode(n) + b"\0" for n in names), np.uint8)


def _split(joined: np.ndarray) -> tuple[str, ...]:
    return tuple(os.fsdecode(name) for name in joined.tobytes().split(b"\0")[:-1])


def open_array(root: "Root | MemoryStore", name: str = "", mode: Any = "r") -> Any:
    """Open one array by its name below `root`."""
    store = root if isinstance(root, MemoryStore) else place_of(root).arrays()
    # A chunk of fill values must be written, too. The setting is not stored with the array, and
    # open_array(config=...) of zarr 3.1.6 ignores it.
    array = zarr.open_array(store, path=name, mode=mode, zarr_format=3)
    return array.with_config({"write_empty_chunks": True})


def _pcodec() -> Any:
    try:
        from zarr.codecs.numcodecs import PCodec

        return PCodec()
    except ImportError as error:
        raise _not_installed(error) from None


def _not_installed(error: ImportError) -> CacheError:
    return CacheError(
        f"the cache's codec is not installed ({error}): pip install 'numcodecs[pcodec]'"
    )


_FILTERS = RLock()  # the warnings module's filters are the whole process's


@contextmanager
def quiet_zarr() -> Iterator[None]:
    """Silence the one warning that says what docs/cache-format.md says: pcodec is an extension."""
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
        yield
