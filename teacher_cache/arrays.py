"""The Zarr side of a cache: four record arrays, and the image index as four more.

Everything that knows zarr-python is here. docs/cache-format.md specifies the bytes.
"""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from teacher_cache.ledger import BlockId
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


def decode_shards(root: Path, name: str, shards: Mapping[str, bytes]) -> Any:
    """One array over shards in memory."""
    held: dict[str, Any] = {
        key.removeprefix(f"{name}/"): Buffer.from_bytes(data)
        for key, data in shards.items()
        if key.startswith(f"{name}/")
    }
    held["zarr.json"] = _buffer(root / name / "zarr.json")
    with quiet_zarr():
        return open_array(MemoryStore(held))


def _buffer(path: Path) -> Buffer:
    return Buffer.from_bytes(path.read_bytes())


def create_arrays(store: Path | MemoryStore, manifest: Manifest, index: ImageIndex) -> None:
    """Create the group, with room for the recipe's views, and store the index in it."""
    recipe = manifest.parsed_recipe()
    views, rows, k = recipe.views.count, len(index), recipe.topk.k
    shard = recipe.storage.rows_per_shard
    chunk = min(4096, shard)
    checks = -(-rows // ROWS_PER_CHECK)
    ids_type = "uint16" if manifest.class_count <= 65_535 else "uint32"
    with quiet_zarr():
        group = zarr.create_group(store=store, zarr_format=3, attributes=manifest.to_json())

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


def array_documents(manifest: Manifest, index: ImageIndex) -> dict[str, Any]:
    """The `zarr.json` of each record array, as `create_arrays` writes it."""
    files: dict[str, Any] = {}
    create_arrays(MemoryStore(files), manifest, index)
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
        raise CacheError(
            f"the cache's codec is not installed ({error}): pip install 'numcodecs[pcodec]'"
        ) from None


_FILTERS = RLock()  # the warnings module's filters are the whole process's


@contextmanager
def quiet_zarr() -> Iterator[None]:
    """Silence the one warning that says what docs/cache-format.md says: pcodec is an extension."""
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
        yield
