"""Parquet, compressed with zstd, in two layouts of the columns ids, logp and tail.

`write_lists` makes a column of fixed-size lists each, as one would at first; Parquet stores how
every list begins. `write_split` makes a column of fixed-length byte strings each, with the encoding
BYTE_STREAM_SPLIT, which brings all rows' bytes of one rank together: of what we tried (a column a
rank, with and without dictionaries, other codecs) the best in bytes and in time together.

A row cannot be read alone, only its page and in practice its row group, so `read_rows` loads the
view and picks from memory.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.formats.rows import LoadedView, Rows
from teacher_cache.record import TopK


def write_lists(folder: Path, records: TopK) -> None:
    """One file a view."""
    columns = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        for name, values in _columns(records).items()
    }
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "view.parquet", compression="zstd")


def write_split(folder: Path, records: TopK) -> None:
    """One file a view."""
    columns = {
        name: pa.Array.from_buffers(
            pa.binary(values.itemsize * values.shape[1]), len(values), [None, pa.py_buffer(values)]
        )
        for name, values in _columns(records).items()
    }
    folder.mkdir()
    pq.write_table(
        pa.table(columns),
        folder / "view.parquet",
        compression="zstd",
        use_dictionary=False,
        use_byte_stream_split=True,
    )


def _columns(records: TopK) -> dict[str, np.ndarray]:
    found = {"ids": records.ids_BK, "logp": records.logp_BK, "tail": records.tail_BT}
    return {name: np.ascontiguousarray(values) for name, values in found.items()}


_KINDS = {"ids": np.uint16, "logp": np.float16, "tail": np.float16}


class Reader(LoadedView):
    """Loads the view at the first read."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "view.parquet"

    def read_all(self) -> Rows:
        table = pq.read_table(self._path)
        return Rows(*(_matrix(table[name].combine_chunks(), kind) for name, kind in _KINDS.items()))


def _matrix(column: pa.Array, kind: type) -> np.ndarray:
    if pa.types.is_fixed_size_list(column.type):
        values = np.asarray(column.flatten())
    else:
        values = np.frombuffer(column.buffers()[1], kind)
    return values.reshape(len(column), -1)
