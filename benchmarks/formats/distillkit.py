"""DistillKit's compressed log-probabilities: a polynomial over the ranks, packed bits, Parquet.

The best `exact_k` log-probabilities stand as bfloat16, the rest as the float32 coefficients of a
least squares fit over the ranks 0, 1, 2, ...; class ids are packed to ceil(log2 C) bits, the
highest first. Both are bytes in Parquet columns of lists of lists of uint8, beside the `input_ids`
of the text. A row there is a text; here it is an image, with one answer, and `input_ids` its
number. There is no tail.

Two settings of DistillKit's README: the `budget` pick, and the `recommended` one, which here keeps
all values exact where its six coefficients would take more bytes than the values that they stand
for.

Layout: arcee-ai/DistillKit, README.md, distillkit/compression/config.py and
distillkit/sample_common.py; the order of bits and of the parts: distillkit/compression/
{bitpack,monotonic_logprobs}.py of the copy in vpareek2/vpMoE, src/DistillKit.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.formats.rows import OpenView, Rows
from benchmarks.records import CLASSES
from teacher_cache.record import TopK

PART = 16_384
_ID_BITS = (CLASSES - 1).bit_length()
_TERMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{str(power): partial(lambda power, ranks: ranks**power, power) for power in range(5)},
    "sqrt": np.sqrt,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """How the K log-probabilities of a record are stored."""

    k: int
    exact_k: int
    terms: tuple[str, ...]

    def design(self) -> np.ndarray:
        """float64 [K - exact_k, terms]: every term at every rank."""
        ranks = np.arange(self.k - self.exact_k, dtype=np.float64)
        return np.stack([_TERMS[term](ranks) for term in self.terms], axis=1)


def budget(k: int) -> Setting:
    return Setting(k, 1, ("0", "1", "sqrt"))


def recommended(k: int) -> Setting:
    terms = ("0", "1", "2", "3", "4", "sqrt")
    pays = 2 * (k - 16) > 4 * len(terms)
    return Setting(k, 16, terms) if pays else Setting(k, k, ())


def write(setting_of: Callable[[int], Setting], folder: Path, records: TopK) -> None:
    """One file a view, and the setting that a reader must know."""
    count, k = records.ids_BK.shape
    setting = setting_of(k)
    fit = np.linalg.pinv(setting.design()) if setting.terms else None
    folder.mkdir()
    (folder / "compression_config.json").write_text(json.dumps(asdict(setting)))
    kinds = {"input_ids": pa.list_(pa.uint64())}
    kinds |= dict.fromkeys(("compressed_logprobs", "bytepacked_indices"), _LISTS)
    with pq.ParquetWriter(folder / "data_0.parquet", pa.schema(kinds)) as file:
        for at in range(0, count, PART):
            part = slice(at, min(at + PART, count))
            packed = _packed_logp(records.logp_BK[part], setting, fit)
            numbers = np.arange(part.start, part.stop, dtype=np.uint64)
            one_each = pa.array(np.arange(len(numbers) + 1, dtype=np.int32))
            columns = [
                pa.ListArray.from_arrays(one_each, pa.array(numbers)),
                _nested(packed),
                _nested(_packed_ids(records.ids_BK[part])),
            ]
            file.write_table(pa.table(dict(zip(kinds, columns, strict=True))))


_LISTS = pa.list_(pa.list_(pa.uint8()))


def _nested(rows_BN: np.ndarray) -> pa.Array:
    """A list of one list of bytes a row."""
    count, width = rows_BN.shape
    starts = np.arange(count + 1, dtype=np.int32)
    inner = pa.ListArray.from_arrays(pa.array(starts * width), pa.array(rows_BN.reshape(-1)))
    return pa.ListArray.from_arrays(pa.array(starts), inner)


def _packed_logp(logp_BK: np.ndarray, setting: Setting, fit: np.ndarray | None) -> np.ndarray:
    logp = np.maximum(logp_BK.astype(np.float32), np.finfo(np.float16).min)
    exact = torch.from_numpy(logp[:, : setting.exact_k]).to(torch.bfloat16)
    parts = [exact.view(torch.uint8).numpy()]
    if fit is not None:
        coefficients = (logp[:, setting.exact_k :].astype(np.float64) @ fit.T).astype("<f4")
        parts.append(coefficients.view(np.uint8))
    return np.concatenate(parts, axis=1)


def _packed_ids(ids_BK: np.ndarray) -> np.ndarray:
    positions = np.arange(_ID_BITS - 1, -1, -1, dtype=np.uint16)
    bits = (ids_BK.astype(np.uint16)[:, :, None] >> positions) & 1
    return np.packbits(bits.astype(np.uint8).reshape(len(ids_BK), -1), axis=1)


class Reader(OpenView):
    """Loads the packed view at the first read; unpacks each batch."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "data_0.parquet"
        stored = json.loads((folder / "compression_config.json").read_text())
        self._setting = Setting(stored["k"], stored["exact_k"], tuple(stored["terms"]))
        self._packed: tuple[np.ndarray, np.ndarray] | None = None

    def read_rows(self, rows: np.ndarray) -> Rows:
        if self._packed is None:
            self._packed = self._load()
        ids_BN, logp_BN = self._packed
        return self._unpacked(ids_BN[rows], logp_BN[rows])

    def read_all(self) -> Rows:
        ids, logp = self._load()
        parts = [
            self._unpacked(ids[at : at + PART], logp[at : at + PART])
            for at in range(0, len(ids), PART)
        ]
        return Rows(
            np.concatenate([part.ids_BK for part in parts]),
            np.concatenate([part.logp_BK for part in parts]),
            None,
        )

    def _load(self) -> tuple[np.ndarray, np.ndarray]:
        table = pq.read_table(self._path, columns=["bytepacked_indices", "compressed_logprobs"])
        ids, logp = (column.combine_chunks() for column in table.columns)
        return tuple(
            np.asarray(lists.flatten().flatten()).reshape(len(lists), -1) for lists in (ids, logp)
        )

    def _unpacked(self, ids_BN: np.ndarray, logp_BN: np.ndarray) -> Rows:
        setting = self._setting
        bits = np.unpackbits(ids_BN, axis=1, count=setting.k * _ID_BITS)
        powers = 2.0 ** np.arange(_ID_BITS - 1, -1, -1, dtype=np.float32)
        ids_BK = bits.reshape(len(bits), setting.k, _ID_BITS).astype(np.float32) @ powers
        exact = np.ascontiguousarray(logp_BN[:, : 2 * setting.exact_k]).view("<u2")
        logp_BK = (exact.astype(np.uint32) << 16).view(np.float32)
        if setting.terms:
            coefficients = np.ascontiguousarray(logp_BN[:, 2 * setting.exact_k :]).view("<f4")
            fitted = coefficients @ setting.design().T.astype(np.float32)
            logp_BK = np.concatenate([logp_BK, fitted], axis=1)
        return Rows(ids_BK.astype(np.uint16), logp_BK, None)
