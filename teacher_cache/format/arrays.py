"""Shards of a cache's arrays, from values to the bytes that zarr writes, and back.

Everything that knows zarr-python is here. docs/cache-format.md specifies the bytes.
"""

import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import RLock
from typing import Any

import google_crc32c
import numpy as np

from teacher_cache.format.descriptions import encoded_description
from teacher_cache.format.encodings import decode_chunk
from teacher_cache.format.layout import SOURCE_ARRAY, Layout
from teacher_cache.record import ROWS_PER_CHECK
from teacher_cache.storage.ledger import BlockId


def shard_key(name: str, block: BlockId) -> str:
    """The path, below the cache, of one array's shard of a block."""
    column = "" if name == "check" else ".0"
    return f"{name}/c.{block.view}.{block.shard}{column}"


def source_shard_key(shard: int) -> str:
    """The path, below the cache, of a shard of the images' checksums."""
    return f"{SOURCE_ARRAY}/c.{shard}"


def encode_shard(
    description: Mapping[str, Any], name: str, block: BlockId, rows: range, value: np.ndarray
) -> bytes:
    """One shard's bytes, as zarr would write them to disk.

    Args:
        description: the array's `zarr.json`.
        name: which array.
        block: which shard; the view is ignored for `source`.
        rows: the array's entries that the shard holds: rows, or entries of `check`.
        value: their values.
    """
    import zarr
    from zarr.storage import MemoryStore

    files: dict[str, Any] = {}
    with quiet_zarr():
        from zarr.buffer.cpu import Buffer

        files["zarr.json"] = Buffer.from_bytes(encoded_description(dict(description)))
        array = zarr.open_array(MemoryStore(files), mode="r+", zarr_format=3)
        # A chunk of fill values must be written, too. The setting is not stored with the array,
        # and open_array(config=...) of zarr 3.1.6 ignores it.
        array = array.with_config({"write_empty_chunks": True})
        place = slice(rows.start, rows.stop)
        if name == SOURCE_ARRAY:
            array[place] = value
        else:
            array[block.view, place] = value
    key = source_shard_key(block.shard) if name == SOURCE_ARRAY else shard_key(name, block)
    return bytes(files[key.removeprefix(f"{name}/")].to_bytes())


def decode_shard(name: str, shard: int, data: bytes, layout: Layout, rows: np.ndarray) -> None:
    """Decode one array's shard of a block into its rows of a view's array.

    Args:
        name: which array.
        shard: the block's shard.
        data: the shard's bytes.
        layout: the shape of the view's arrays.
        rows: [rows, padded to whole chunks; width] of all shards, to be written into.

    Raises:
        ValueError: bytes that are no such shard.
    """
    for place, chunk in _chunks(name, shard, data, layout, len(rows)):
        decode_chunk(name, chunk, rows[place].reshape(-1), layout.encoding)


def decode_kept_rows(
    name: str, shard: int, data: bytes, layout: Layout, kept_M: np.ndarray, out_MK: np.ndarray
) -> None:
    """Decode one array's shard of a block, chunk by chunk, and keep only the records of some rows.

    Args:
        name: which array: one that has an entry a row.
        shard: the block's shard.
        data: the shard's bytes.
        layout: the shape of the view's arrays.
        kept_M: int64 [M] ascending rows of the view, of any of its shards.
        out_MK: [M, width] the records of `kept_M`; those of this shard are written.

    Raises:
        ValueError: bytes that are no such shard.
    """
    decoded = np.empty((layout.chunk_rows, out_MK.shape[1]), out_MK.dtype)
    for place, chunk in _chunks(name, shard, data, layout, layout.rows):
        decode_chunk(name, chunk, decoded.reshape(-1), layout.encoding)
        first, last = np.searchsorted(kept_M, (place.start, place.stop))
        out_MK[first:last] = decoded.take(kept_M[first:last] - place.start, axis=0)


def _chunks(
    name: str, shard: int, data: bytes, layout: Layout, end: int
) -> Iterator[tuple[slice, bytes]]:
    """Each chunk of a shard that begins before entry `end`: its place in the array, its bytes.

    Zarr's arithmetic by hand: of bytes whose digest was just compared it need not be asked how
    they are laid out, and 300 chunks cost it more than decoding them does.
    """
    entries = ROWS_PER_CHECK if name == "check" else 1
    chunk_rows, shard_rows = layout.chunk_rows // entries, layout.rows_per_shard // entries
    for chunk, (offset, length) in enumerate(chunk_index(data, shard_rows // chunk_rows)):
        start = shard * shard_rows + chunk * chunk_rows
        if start < end:
            yield slice(start, start + chunk_rows), chunk_bytes(data, offset, length)


def chunk_index(data: bytes, count: int) -> list[tuple[int, int]]:
    """Offset and length of each inner chunk, from a shard's end.

    Raises:
        ValueError: the index is cut off, or does not match its CRC-32C.
    """
    start = len(data) - 16 * count - 4
    index = data[max(start, 0) : -4]
    if start < 0 or google_crc32c.value(index) != int.from_bytes(data[-4:], "little"):
        raise ValueError("its index of chunks is damaged")
    return list(struct.iter_unpack("<QQ", index))


def chunk_bytes(data: bytes, offset: int, length: int) -> bytes:
    """One chunk's encoded bytes, without the CRC-32C that ends them.

    Raises:
        ValueError: the index places it outside the shard.
    """
    if not 4 <= length <= len(data) - min(offset, len(data)):
        raise ValueError("its index places a chunk outside the file")
    return data[offset : offset + length - 4]


_SETTINGS = RLock()  # the warnings module's filters and zarr's settings are the whole process's


@contextmanager
def quiet_zarr() -> Iterator[None]:
    """Zarr with its own codecs, and without the warning that pcodec is an extension.

    Another codec pipeline (zarrs, by environment variable or configuration) decodes the same
    records, but writes other bytes, in an order that depends on its threads.
    """
    import zarr
    from zarr.core.codec_pipeline import BatchedCodecPipeline

    pipeline = f"{BatchedCodecPipeline.__module__}.{BatchedCodecPipeline.__qualname__}"
    with (
        _SETTINGS,
        warnings.catch_warnings(),
        zarr.config.set({"codec_pipeline.path": pipeline}),
    ):
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
        yield
