"""HDF5: a data set a column, in compressed chunks of 4,096 rows.

`shuffle` and `gzip` are the filters that every HDF5 library has. A row is read by reading its
chunk, so the reader keeps all decoded chunks (`rdcc_nbytes`); its selections are in the file's
order.
"""

from pathlib import Path

import h5py
import numpy as np

from benchmarks.formats.rows import OpenView, Rows
from teacher_cache.record import TopK

CHUNK = 4_096
CHUNK_CACHE = 1 << 28


def write(folder: Path, records: TopK) -> None:
    """One file a view."""
    folder.mkdir()
    columns = {"ids": records.ids_BK, "logp": records.logp_BK, "tail": records.tail_BT}
    with h5py.File(folder / "view.h5", "w", libver="latest") as file:
        for name, values in columns.items():
            chunk = (min(CHUNK, len(values)), values.shape[1])
            file.create_dataset(name, data=values, chunks=chunk, shuffle=True, compression="gzip")


class Reader(OpenView):
    """Reads selections of rows through the cache of chunks."""

    def __init__(self, folder: Path) -> None:
        # slots: a prime, some 100 times as many as chunks
        self._file = h5py.File(
            folder / "view.h5", "r", rdcc_nbytes=CHUNK_CACHE, rdcc_nslots=100_003
        )

    def close(self) -> None:
        self._file.close()

    def read_rows(self, rows: np.ndarray) -> Rows:
        order = np.argsort(rows)
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        columns = (self._file[name][rows[order]] for name in ("ids", "logp", "tail"))
        return Rows(*columns).at(back)

    def read_all(self) -> Rows:
        return Rows(*(self._file[name][:] for name in ("ids", "logp", "tail")))
