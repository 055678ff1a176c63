"""The shape of one view's records, on disk and in memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from teacher_cache.encodings import Encoding

RECORD_ARRAYS = ("ids", "logp", "tail", "check")
ROWS_PER_CHECK = 32
"""Row 32 j + (v mod 32) of view v is checked: 32 views check every image."""

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
