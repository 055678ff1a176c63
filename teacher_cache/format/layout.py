"""The shape of one view's records, on disk and in memory: what follows from a cache's manifest.

The numbers that the format fixes stand here and nowhere else.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from teacher_cache.record import CHUNK_ROWS, FILL_ID, ROWS_PER_CHECK, Encoding

RECORD_ARRAYS = ("ids", "logp", "tail", "check")
SOURCE_ARRAY = "source"
INDEX_BYTES_PER_CHUNK = 16
"""A shard ends in (offset, length) of each of its chunks, and the CRC-32C of those pairs."""

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
    encoding: Encoding

    @property
    def chunk_rows(self) -> int:
        """Rows of an inner chunk."""
        return min(CHUNK_ROWS, self.rows_per_shard)

    @property
    def shards(self) -> int:
        """How many shards the rows are cut into."""
        return -(-self.rows // self.rows_per_shard)

    def rows_of(self, shard: int) -> range:
        """The rows of one shard."""
        start = shard * self.rows_per_shard
        return range(start, min(start + self.rows_per_shard, self.rows))

    def checks_of(self, shard: int) -> range:
        """The entries of `check` that belong to one shard."""
        rows = self.rows_of(shard)
        return range(rows.start // ROWS_PER_CHECK, -(-rows.stop // ROWS_PER_CHECK))

    @property
    def ids_dtype(self) -> "np.dtype[Any]":
        """The type of class ids: the smallest that leaves its largest value for absent rows."""
        return np.dtype("<u2" if self.class_count <= FILL_ID else "<u4")

    def most_bytes(self, name: str) -> int:
        """An upper bound of what one shard of an array weighs on disk.

        Codecs may grow what they cannot compress, by some bytes a chunk and a small share.
        """
        entries = self.rows_per_shard // (ROWS_PER_CHECK if name == "check" else 1)
        widths = {"ids": 4 * self.k, "logp": 2 * self.k, "tail": 2 * self.temperatures}
        plain = entries * widths.get(name, 4)
        chunks = self.rows_per_shard // self.chunk_rows
        return plain + plain // 8 + chunks * (INDEX_BYTES_PER_CHUNK + 4096)

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
        half, check = np.dtype("<f2"), np.dtype("<u4")
        widths = ((self.k, self.ids_dtype), (self.k, half), (self.temperatures, half))
        return [((rows, k), dtype) for k, dtype in widths] + [((rows // ROWS_PER_CHECK, 1), check)]
