"""A cache stores its image index as four arrays of one uncompressed chunk, which can be mapped.

    keys       uint8: the N keys in row order, each ended by a NUL byte
    labels     int64 [N] class ids
    classes    uint8: the C class folders in the order of their ids, each ended by a NUL byte
    class_ids  int64 [C] their ids, ascending

N images, C classes. The arrays' `zarr.json` are for other readers: nothing is read from them here.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from teacher_cache.images.index import ImageIndex
from teacher_cache.images.names import Names
from teacher_cache.storage.place import Place

INDEX_ARRAYS = ("keys", "labels", "classes", "class_ids")
MOST_KEY_BYTES = 4096
"""The longest key: it is a path, and Linux takes none of more bytes."""


def chunk_key(name: str) -> str:
    """Where an array's one chunk lies, below the cache."""
    return f"{name}/c.0"


def index_files(index: ImageIndex) -> dict[str, bytes]:
    """The files of an index by their keys below the cache."""
    names = sorted(index.class_ids, key=lambda name: index.class_ids[name])
    chunks = {
        "keys": bytes(index.keys.blob),
        "labels": index.labels.astype("<i8").tobytes(),
        "classes": _joined(names),
        "class_ids": np.array([index.class_ids[name] for name in names], "<i8").tobytes(),
    }
    files = {chunk_key(name): data for name, data in chunks.items()}
    for name, document in _documents({name: len(data) for name, data in chunks.items()}).items():
        files[f"{name}/zarr.json"] = json.dumps(document, indent=2).encode()
    return files


def index_documents(index: ImageIndex) -> dict[str, dict[str, Any]]:
    """The `zarr.json` that each array must have, by the array's name."""
    return _documents(
        {
            "keys": len(index.keys.blob),
            "labels": 8 * len(index),
            "classes": sum(len(os.fsencode(name)) + 1 for name in index.class_ids),
            "class_ids": 8 * len(index.class_ids),
        }
    )


def read_index(place: Place, root: Path, *, rows: int) -> ImageIndex:
    """Read the image index; keys and labels are mapped if the place is a folder.

    Args:
        place: where the cache lies.
        root: the root of the index that is returned.
        rows: how many images there must be.

    Raises:
        ValueError: a file is missing, or the files hold no index of so many images.
    """

    def chunk(name: str, at_most: int) -> bytes:
        data = place.read(chunk_key(name), at_most=at_most)
        if data is None:
            raise ValueError(f"{chunk_key(name)} is missing")
        return data

    labels, keys = _mapped_rows(place, rows) or (
        _numbers("labels", chunk("labels", 8 * rows)),
        Names(chunk("keys", MOST_KEY_BYTES * rows)),
    )
    # A class map may name more classes than there are images.
    ids = _numbers("class_ids", chunk("class_ids", 8 * max(rows, 1 << 20)))
    classes = _split("classes", chunk("classes", MOST_KEY_BYTES * len(ids)))
    if len(keys) != rows or len(labels) != rows:
        raise ValueError(f"it holds {len(keys)} keys and {len(labels)} labels of {rows} images")
    if len(classes) != len(ids) or (np.diff(ids) <= 0).any() or len(set(classes)) != len(ids):
        raise ValueError(f"it names {len(classes)} classes with {len(ids)} ids, each once")
    if (ids[np.minimum(np.searchsorted(ids, labels), len(ids) - 1)] != labels).any():
        raise ValueError("an image has a label that no class has")
    return ImageIndex(root, keys, labels, dict(zip(classes, ids.tolist(), strict=True)))


def _mapped_rows(place: Place, rows: int) -> tuple[np.ndarray, Names] | None:
    """Map labels and keys from their files: all processes of a host share the pages."""
    label_path, key_path = (place.path_of(chunk_key(name)) for name in ("labels", "keys"))
    if label_path is None or key_path is None or not rows:
        return None
    # A file of a wrong size is not mapped: `read_index` reads it then, and refuses it.
    if label_path.stat().st_size != 8 * rows:
        return None
    if not rows <= key_path.stat().st_size <= MOST_KEY_BYTES * rows:
        return None
    return np.memmap(label_path, "<i8", "r"), Names.mapped(key_path)


def _documents(sizes: dict[str, int]) -> dict[str, dict[str, Any]]:
    """The `zarr.json` of each array, from the number of bytes of its chunk."""
    found = {}
    for name, size in sizes.items():
        is_text = name in ("keys", "classes")
        count = size if is_text else size // 8
        codec: dict[str, Any] = {"name": "bytes"}
        if not is_text:
            codec["configuration"] = {"endian": "little"}
        found[name] = {
            "shape": [count],
            "data_type": "uint8" if is_text else "int64",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [count]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": 0,
            "codecs": [codec],
            "attributes": {},
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
    return found


def _joined(names: Iterable[str]) -> bytes:
    return b"".join(os.fsencode(name) + b"\0" for name in names)


def _split(name: str, joined: bytes) -> tuple[str, ...]:
    if not joined.endswith(b"\0"):
        raise ValueError(f"{chunk_key(name)} does not end in a NUL byte")
    return tuple(os.fsdecode(each) for each in joined.split(b"\0")[:-1])


def _numbers(name: str, data: bytes) -> np.ndarray:
    if len(data) % 8:
        raise ValueError(f"{chunk_key(name)} has {len(data)} bytes, which are no 64-bit numbers")
    return np.frombuffer(data, "<i8").astype(np.int64)
