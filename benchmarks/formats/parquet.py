"""Parquet: a column of fixed-size lists each for ids, logp and tail, compressed with zstd.

A row cannot be read alone, only its page and in practice its row group, so a shuffled epoch loads
the view and picks from memory.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.formats.rows import OpenView, Rows
from teacher_cache.record import TopK


def write(folder: Path, records: TopK) -> None:
    """One file a view."""
    columns = {"ids": records.ids_BK, "logp": records.logp_BK, "tail": records.tail_BT}
    table = pa.table(
        {
            name: pa.FixedSizeListArray.from_arrays(
                pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1]
            )
            for name, values in columns.items()
        }
    )
    folder.mkdir()
    pq.write_table(table, folder / "view.parquet", compression="zstd")


class Reader(OpenView):
    """Loads the view at the first read."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "view.parquet"
        self._view: Rows | None = None

    def read_rows(self, rows: np.ndarray) -> Rows:
        if self._view is None:
            self._view = self.read_all()
        return self._view.at(rows)

    def read_all(self) -> Rows:
        table = pq.read_table(self._path)
        return Rows(*(_matrix(table[name]) for name in ("ids", "logp", "tail")))


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    lists = column.combine_chunks()
    return np.asarray(lists.flatten()).reshape(len(lists), -1)
