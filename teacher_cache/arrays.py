"""The Zarr side of a cache: four record arrays, and the image index as four more.

Everything that knows zarr-python is here. docs/cache-format.md specifies the bytes.
"""

import json
import math
import os
import struct
import warnings
from collections.abc import Callable, Iterator
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

RECORD_ARRAYS = ("ids", "logp", "tail", "check")
INDEX_ARRAYS = ("keys", "labels", "classes", "class_ids")
ROWS_PER_CHECK = 32
"""Row 32 j + (v mod 32) of view v is checked: 32 views check every image."""


def shard_key(name: str, block: BlockId) -> str:
    """The path, below the cache, of one array's shard of a block."""
    columns = ("0",) if name != "check" else ()
    return "/".join((name, "c", str(block.view), str(block.shard), *columns))


def encode_shard(root: Path, block: BlockId, rows: range, name: str, value: np.ndarray) -> bytes:
    """One shard's bytes, as zarr would write them to disk."""
    start, stop = rows.start, rows.stop
    if name == "check":
        start, stop = start // ROWS_PER_CHECK, -(-stop // ROWS_PER_CHECK)
    files: dict[str, Any] = {"zarr.json": _buffer(root / name / "zarr.json")}
    with quiet_zarr():
        open_array(MemoryStore(files), mode="r+")[block.view, start:stop] = value
    return bytes(files[shard_key(name, block).removeprefix(f"{name}/")].to_bytes())


def decode_shard(name: str, shard: int, data: bytes, layout: "Layout", rows: np.ndarray) -> None:
    """Decode one array's shard of a block into its rows of a view's array.

    Zarr's arithmetic by hand: of bytes whose checksums were just compared it need not be asked how
    they are laid out, and 300 chunks cost it more than decoding them does.

    Args:
        name: which array.
        shard: the block's shard.
        data: the shard's bytes.
        layout: the shape of the view's arrays.
        rows: [rows, padded to whole chunks; width] of all shards, to be written into.

    Raises:
        ValueError: bytes that are no such shard.
    """
    entries = ROWS_PER_CHECK if name == "check" else 1
    chunk_rows, shard_rows = layout.chunk_rows // entries, layout.rows_per_shard // entries
    for chunk, (offset, length) in enumerate(chunk_index(data, shard_rows // chunk_rows)):
        start = shard * shard_rows + chunk * chunk_rows
        if start < len(rows):
            out = rows[start : start + chunk_rows].reshape(-1)
            _decode_chunk(name, data[offset : offset + length - 4], out)


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


Memory = Callable[[int], np.ndarray]
"""From a number of bytes to as many: uint8 [bytes], writable."""


def private_memory(size: int) -> np.ndarray:
    """Memory of this process alone."""
    return np.empty(size, np.uint8)


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of one view's arrays, as the manifest tells it."""

    rows: int
    rows_per_shard: int
    k: int
    temperatures: int
    class_count: int

    @property
    def chunk_rows(self) -> int:
        """Rows of an inner chunk."""
        return min(4096, self.rows_per_shard)

    @property
    def nbytes(self) -> int:
        """What one view's arrays weigh in memory, rows padded to whole chunks."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self._places())

    def arrays_in(self, memory: np.ndarray) -> dict[str, np.ndarray]:
        """One view's arrays in `nbytes` bytes of memory: [rows, padded to whole chunks; width]."""
        arrays, at = {}, 0
        for name, (shape, dtype) in zip(RECORD_ARRAYS, self._places(), strict=True):
            size = math.prod(shape) * dtype.itemsize
            arrays[name] = memory[at : at + size].view(dtype).reshape(shape)
            at += size
        return arrays

    def _places(self) -> list[tuple[tuple[int, int], np.dtype[Any]]]:
        # a chunk's rows are a multiple of 32, so every array begins at a multiple of 64 bytes
        rows = -(-self.rows // self.chunk_rows) * self.chunk_rows
        ids = np.dtype("<u2" if self.class_count <= 65_535 else "<u4")
        half, check = np.dtype("<f2"), np.dtype("<u4")
        widths = ((self.k, ids), (self.k, half), (self.temperatures, half))
        return [((rows, k), dtype) for k, dtype in widths] + [((rows // ROWS_PER_CHECK, 1), check)]


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


def _buffer(path: Path) -> Buffer:
    return Buffer.from_bytes(path.read_bytes())


def create_arrays(store: Path | MemoryStore, manifest: Manifest, index: ImageIndex) -> None:
    """Create the group, with room for the recipe's views, and store the index in it."""
    with quiet_zarr():
        group = zarr.create_group(store=store, zarr_format=3, attributes=manifest.to_json())
        _create_records(group, manifest, len(index))
        _write_index(group, index)


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
    """The `zarr.json` of each record array, as `create_arrays` writes it."""
    files: dict[str, Any] = {}
    with quiet_zarr():
        _create_records(zarr.create_group(MemoryStore(files), zarr_format=3), manifest, rows)
    return {name: json.loads(files[f"{name}/zarr.json"].to_bytes()) for name in RECORD_ARRAYS}


def read_index(root: Path) -> ImageIndex:
    """The image index as stored.

    Raises:
        ValueError, OSError, KeyError: it cannot be read.
    """
    keys, labels, classes, ids = (
        open_array(root, name)[:] for name in ("keys", "labels", "classes", "class_ids")
    )
    class_ids = dict(zip(_split(classes), ids.tolist(), strict=True))
    return ImageIndex(root, _split(keys), labels, class_ids)


def _joined(names: tuple[str, ...] | list[str]) -> np.ndarray:
    """File names as bytes, each ended by NUL, which no file name contains."""
    return np.frombuffer(b"".join(os.fsencode(n) + b"\0" for n in names), np.uint8)


def _split(joined: np.ndarray) -> tuple[str, ...]:
    return tuple(os.fsdecode(name) for name in joined.tobytes().split(b"\0")[:-1])


def open_array(store: Path | MemoryStore, name: str = "", mode: Any = "r") -> Any:
    """Open one array by its name below `store`."""
    # A chunk of fill values must be written, too. The setting is not stored with the array, and
    # open_array(config=...) of zarr 3.1.6 ignores it.
    array = zarr.open_array(store, path=name, mode=mode)
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
