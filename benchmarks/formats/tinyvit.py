"""TinyViT's saved logits: a file of keys, a file of equally long records, a seek each.

One folder an epoch. `rank0-keys.txt` holds a key a line, `rank0-values.bin` in the same order per
key an int32 seed of the augmentation, K int16 class ids and K float16 probabilities. There is no
tail. A reader builds a table of all keys and then seeks to every record.

Layout: microsoft/Cream, TinyViT/data/augmentation/manager.py and dataset_wrapper.py.
"""

from pathlib import Path

import numpy as np

from benchmarks.formats.rows import OpenView, Rows, keys
from teacher_cache.record import TopK


def _item(k: int) -> np.dtype:
    return np.dtype([("seed", "<i4"), ("ids", "<i2", (k,)), ("p", "<f2", (k,))])


def write(folder: Path, records: TopK) -> None:
    """Both files of one epoch."""
    count, k = records.ids_BK.shape
    items = np.zeros(count, _item(k))
    items["seed"] = np.random.default_rng(0).integers(0, 1 << 31, count)
    items["ids"] = records.ids_BK
    items["p"] = np.exp(records.logp_BK.astype(np.float32))
    folder.mkdir()
    with (folder / "rank0-keys.txt").open("w") as file:
        file.writelines(f"{key}\n" for key in keys(count))
    (folder / "rank0-values.bin").write_bytes(items.tobytes())


class Reader(OpenView):
    """The table of keys is read with the first record, as TinyViT does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._values = (folder / "rank0-values.bin").open("rb")
        self._places: dict[str, int] = {}
        self._names: list[str] = []
        self._dtype: np.dtype | None = None

    def close(self) -> None:
        self._values.close()

    def read_rows(self, rows: np.ndarray) -> Rows:
        dtype = self._item_type()
        found = []
        for row in rows.tolist():
            # the data set knows an image by its key
            self._values.seek(self._places[self._names[row]] * dtype.itemsize)
            found.append(self._values.read(dtype.itemsize))
        return _rows(np.frombuffer(b"".join(found), dtype))

    def read_all(self) -> Rows:
        dtype = self._item_type()
        self._values.seek(0)
        return _rows(np.frombuffer(self._values.read(), dtype))

    def _item_type(self) -> np.dtype:
        if self._dtype is None:
            names = (self._folder / "rank0-keys.txt").read_text().splitlines()
            self._places = {name: place for place, name in enumerate(names)}
            self._names = names
            size = (self._folder / "rank0-values.bin").stat().st_size // len(names)
            self._dtype = _item((size - 4) // 4)
        return self._dtype


def _rows(items: np.ndarray) -> Rows:
    with np.errstate(divide="ignore"):  # a probability below 3e-8 is stored as 0
        logp_BK = np.log(items["p"], dtype=np.float32)
    return Rows(items["ids"], logp_BK, None)
