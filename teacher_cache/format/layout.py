"""The shape of one view's records, on disk and in memory, which follows from a cache's manifest."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from teacher_cache.record import CHUNK_ROWS, FILL_ID, ROWS_PER_CHECK, Encoding

RECORD_ARRAYS = ("ids", "logp", "tail", "check")
MOMENTS_ARRAY = "moments"
"""A further array of records, where a recipe asks for it."""
SOURCE_ARRAY = "source"
INDEX_BYTES_PER_CHUNK = 16
"""A shard ends in an index: (offset, length) of each chunk, and the CRC-32C of these pairs."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The shape of one view's arrays, according to the manifest."""

    rows: int
    rows_per_shard: int
    k: int
    temperatures: int
    class_count: int
    encoding: Encoding
    moments: bool = False
    """Whether mean and deviation of all classes' log-probabilities are kept."""

    @property
    def record_arrays(self) -> tuple[str, ...]:
        """The names of the arrays of which every block has a shard."""
        return (*RECORD_ARRAYS, MOMENTS_ARRAY) if self.moments else RECORD_ARRAYS

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
        """The type of class ids: the smallest whose largest value is no id, but the fill value."""
        return np.dtype("<u2" if self.class_count <= FILL_ID else "<u4")

    def most_bytes(self, name: str) -> int:
        """An upper bound of the bytes of one shard of an array on disk.

        Data that cannot be compressed grow, by some bytes a chunk and a small share.
        """
        entries = self.rows_per_shard // (ROWS_PER_CHECK if name == "check" else 1)
        widths = {"ids": 4 * self.k, "logp": 2 * self.k, "tail": 2 * self.temperatures}
        plain = entries * widths.get(name, 4)  # ids may take 2 bytes, but 4 is a bound for both
        chunks = self.rows_per_shard // self.chunk_rows
        return plain + plain // 8 + chunks * (INDEX_BYTES_PER_CHUNK + 4096)

    def slab_bytes(self, kept_rows: int) -> int:
        """What the records of so many rows weigh in memory, with the view's `check`."""
        record = self.k * (self.ids_dtype.itemsize + 2) + self.temperatures * 2 + 4 * self.moments
        return kept_rows * record + 4 * -(-self.rows // ROWS_PER_CHECK)

    def empty_arrays(self, kept_rows: int | None = None) -> dict[str, np.ndarray]:
        """Room for one view's arrays, by name, to be decoded into.

        Args:
            kept_rows: M, how many rows' records are kept; None: all.

        Returns:
            `ids`, `logp`, `tail` and `moments`: [rows, padded to whole chunks; width], or
            [M, width]. `check` is small and always whole: [entries, padded to whole chunks; 1].
        """
        padded = -(-self.rows // self.chunk_rows) * self.chunk_rows
        records = padded if kept_rows is None else kept_rows
        arrays = {
            "ids": np.empty((records, self.k), self.ids_dtype),
            "logp": np.empty((records, self.k), "<f2"),
            "tail": np.empty((records, self.temperatures), "<f2"),
            "check": np.empty((padded // ROWS_PER_CHECK, 1), "<u4"),
        }
        return arrays | ({MOMENTS_ARRAY: np.empty((records, 2), "<f2")} if self.moments else {})
