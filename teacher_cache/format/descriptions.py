"""The `zarr.json` of a cache's record arrays, with which any Zarr v3 reader opens them. Pure.

They follow from the manifest and the number of views. They are written for other readers, and
compared whenever a cache is opened; Retort itself never reads a shape or a codec from them.
"""

import json
from typing import Any

from teacher_cache.format.encodings import NO_CODE, SCALE
from teacher_cache.format.layout import MOMENTS_ARRAY, SOURCE_ARRAY, Layout
from teacher_cache.record import ROWS_PER_CHECK, Encoding

_CRC32C = {"name": "crc32c"}
_LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}


def description_key(name: str) -> str:
    """Where an array's `zarr.json` lies, below the cache."""
    return f"{name}/zarr.json"


def encoded_description(document: dict[str, Any]) -> bytes:
    """The bytes of a `zarr.json`."""
    return json.dumps(document, indent=2).encode()


def descriptions(layout: Layout, view_count: int) -> dict[str, dict[str, Any]]:
    """The `zarr.json` of each record array and of `source`, by the array's name."""
    rows = layout.rows
    shape = {
        "ids": [view_count, rows, layout.k],
        "logp": [view_count, rows, layout.k],
        "tail": [view_count, rows, layout.temperatures],
        "check": [view_count, -(-rows // ROWS_PER_CHECK)],
        **({MOMENTS_ARRAY: [view_count, rows, 2]} if layout.moments else {}),
        SOURCE_ARRAY: [rows],
    }
    found = {name: _description(name, layout, shape[name]) for name in shape}
    assert tuple(found) == (*layout.record_arrays, SOURCE_ARRAY)
    if layout.encoding is Encoding.COMPACT:
        formula = {"sqrt_scale": SCALE, "logp": "-(code / sqrt_scale) ** 2"}
        found["logp"]["attributes"] = formula
    return found


def _description(name: str, layout: Layout, shape: list[int]) -> dict[str, Any]:
    data_type, fill_value = _values(name, layout)
    shard_rows, chunk_rows = layout.rows_per_shard, layout.chunk_rows
    if name == "check":
        shard_rows, chunk_rows = shard_rows // ROWS_PER_CHECK, chunk_rows // ROWS_PER_CHECK
    view, width = [1] * (len(shape) > 1), shape[2:]
    sharding = {
        "chunk_shape": [*view, chunk_rows, *width],
        "codecs": _codecs(name, layout.encoding),
        "index_codecs": [_LITTLE_ENDIAN, _CRC32C],
        "index_location": "end",
    }
    grid = {"chunk_shape": [*view, shard_rows, *width]}
    return {
        "shape": shape,
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": grid},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill_value,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _values(name: str, layout: Layout) -> tuple[str, int | str]:
    """An array's data type and fill value."""
    if name == "ids":
        return layout.ids_dtype.name, 2 ** (8 * layout.ids_dtype.itemsize) - 1
    if name == "logp" and layout.encoding is Encoding.COMPACT:
        return "uint16", NO_CODE
    return ("float16", "NaN") if name in ("logp", "tail", MOMENTS_ARRAY) else ("uint32", 0)


def _codecs(name: str, encoding: Encoding) -> list[dict[str, Any]]:
    """The codecs from a chunk's values to its bytes, of which the last is a checksum."""
    if name in ("check", SOURCE_ARRAY):
        return [_LITTLE_ENDIAN, _CRC32C]
    if encoding is Encoding.PORTABLE:
        # level 9 would save 2% of the bytes and take four times as long
        zstd = {"name": "zstd", "configuration": {"level": 3, "checksum": False}}
        return [_LITTLE_ENDIAN, zstd, _CRC32C]
    return [{"name": "numcodecs.pcodec", "configuration": {}}, _CRC32C]
