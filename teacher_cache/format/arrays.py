"""Shards of a cache's arrays, from values to the bytes that zarr writes, and back.

All that Retort needs to know of zarr-python is here. docs/cache-format.md specifies the bytes.
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
        name: the array's name.
        block: the shard and its view; the view is ignored for `source`.
        rows: which entries of the array the shard holds: rows, or entries of `check`.
        value: the values of these entries.
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
        name: the array's name.
        shard: the number of the block's shard.
        data: the shard's bytes.
        layout: the shape of the view's arrays.
        rows: the view's array, [rows, padded to whole chunks; width], to be written into.

    Raises:
        ValueError: the bytes are no such shard.
    """
    for place, chunk in _chunks(name, shard, data, layout, len(rows)):
        decode_chunk(name, chunk, rows[place].reshape(-1), layout.encoding)


def decode_kept_rows(
    name: str, shard: int, data: bytes, layout: Layout, kept_M: np.ndarray, out_MK: np.ndarray
) -> None:
    """Decode one array's shard of a block, chunk by chunk, and keep only the records of some rows.

    Args:
        name: the name of an array that has one entry for each row.
        shard: the number of the block's shard.
        data: the shard's bytes.
        layout: the shape of the view's arrays.
        kept_M: int64 [M] ascending rows of the view, of any of its shards.
        out_MK: [M, width] the records of `kept_M`, of which those of this shard are written.

    Raises:
        ValueError: the bytes are no such shard.
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

    This does zarr's arithmetic by hand: the digest of these bytes was just compared, so it is known
    how they are laid out, and zarr would spend more time on 300 chunks than decoding them takes.
    """
    entries = ROWS_PER_CHECK if name == "check" else 1
    chunk_rows, shard_rows = layout.chunk_rows // entries, layout.rows_per_shard // entries
    for chunk, (offset, length) in enumerate(chunk_index(data, shard_rows // chunk_rows)):
        start = shard * shard_rows + chunk * chunk_rows
        if start < end:
            yield slice(start, start + chunk_rows), chunk_bytes(data, offset, length)


def chunk_index(data: bytes, count: int) -> list[tuple[int, int]]:
    """Offset and length of each inner chunk, read from the index at the end of a shard.

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


_SETTINGS = RLock()  # all threads of a process share warning filters and zarr's settings


@contextmanager
def quiet_zarr() -> Iterator[None]:
    """Use zarr's own codec pipeline, and silence its warning that pcodec is an extension.

    A user may have configured another pipeline, such as zarrs. It would decode the same records,
    but write other bytes, in an order that depends on its threads.
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
