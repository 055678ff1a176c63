"""The Zarr side of a cache: four record arrays, and the image index as four more.

Everything that knows zarr-python is here. docs/cache-format.md specifies the bytes.
"""

import json
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import zarr
from zarr.buffer.cpu import Buffer
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.storage import MemoryStore

from teacher_cache.encodings import (
    NO_CODE,
    SCALE,
    Encoding,
    compressors,
    decode_chunk,
    serializer,
)
from teacher_cache.errors import CacheError
from teacher_cache.images import ImageIndex
from teacher_cache.layout import RECORD_ARRAYS, ROWS_PER_CHECK, Layout
from teacher_cache.ledger import BlockId, crc32c_of
from teacher_cache.manifest import Manifest
from teacher_cache.place import Root, place_of

INDEX_ARRAYS = ("keys", "labels", "classes", "class_ids")


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


def decode_shard(name: str, shard: int, data: bytes, layout: Layout, rows: np.ndarray) -> None:
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
            decode_chunk(name, data[offset : offset + length - 4], out, layout.encoding)


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

    encoding = recipe.storage.encoding
    values_to_bytes, bytes_to_bytes = serializer(encoding), compressors(encoding)

    def records(name: str, width: int, dtype: str, fill: float, **more: Any) -> None:
        group.create_array(
            name,
            shape=(views, rows, width),
            shards=(1, shard, width),
            chunks=(1, chunk, width),
            dtype=dtype,
            fill_value=fill,
            serializer=values_to_bytes,
            compressors=bytes_to_bytes,
            **more,
        )

    records("ids", k, ids_type, np.iinfo(ids_type).max)
    if encoding is Encoding.COMPACT:
        formula = {"sqrt_scale": SCALE, "logp": "-(code / sqrt_scale) ** 2"}
        records("logp", k, "uint16", NO_CODE, attributes=formula)
    else:
        records("logp", k, "float16", float("nan"))
    records("tail", len(recipe.topk.temperatures), "float16", float("nan"))
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


_SETTINGS = RLock()  # the warnings module's filters and zarr's settings are the whole process's
_PIPELINE = f"{BatchedCodecPipeline.__module__}.{BatchedCodecPipeline.__qualname__}"


@contextmanager
def quiet_zarr() -> Iterator[None]:
    """Zarr with its own codecs, and without the warning that pcodec is an extension.

    Another codec pipeline (zarrs, by environment variable or configuration) decodes the same
    records, but writes other bytes, in an order that depends on its threads.
    """
    with (
        _SETTINGS,
        warnings.catch_warnings(),
        zarr.config.set({"codec_pipeline.path": _PIPELINE}),
    ):
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
        yield
