"""The teacher's answers on a sample of labelled images, which a cache keeps.

n images of the sample, K kept classes, T temperatures.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from teacher_cache.cache.cache import Cache
from teacher_cache.errors import DamagedRecords, repair_advice
from teacher_cache.format.layout import Layout
from teacher_cache.record import LOWEST_LOGP
from teacher_cache.storage.ledger import MOST_ENTRY_BYTES, SAMPLE_KEY, seal, unseal

MOST_IMAGES = 4096
"""The largest sample: it costs no more than so many records, of a cache's millions."""


@dataclass(frozen=True, slots=True, eq=False)
class TeacherSample:
    """The teacher's answers on a sample, and how they compare with the labels."""

    rows: np.ndarray
    """int64 [n], ascending."""
    labels: np.ndarray
    """int64 [n] class ids."""
    ids_NK: np.ndarray
    """int64 [n, K], best first, as a cache's records are."""
    logp_NK: np.ndarray
    """float16 [n, K]."""
    tail_NT: np.ndarray
    """float16 [n, T]."""
    probability_N: np.ndarray
    """float32 [n] the teacher's probability of the label, even if that is not among the K."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Further figures, computed from the teacher's full answers before all but K were dropped."""

    @property
    def top1(self) -> float:
        """The share of images whose best class is the label."""
        return float((self.ids_NK[:, 0] == self.labels).mean())

    @property
    def mean_probability(self) -> float:
        """The mean over the images of the label's probability."""
        return float(self.probability_N.mean())

    def to_document(self) -> dict[str, Any]:
        """The sample as JSON, in which null stands for minus infinity: the tail of no class."""
        tail = [[None if t == -np.inf else float(t) for t in row] for row in self.tail_NT]
        return {
            "rows": self.rows.tolist(),
            "labels": self.labels.tolist(),
            "ids": self.ids_NK.tolist(),
            "logp": self.logp_NK.astype(np.float64).tolist(),
            "tail": tail,
            "probability": self.probability_N.astype(np.float64).tolist(),
            "measures": dict(self.measures),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], layout: Layout) -> Self:
        """The inverse of `to_document`, for a cache with this layout.

        Raises:
            ValueError, KeyError, TypeError: the document is no sample of such a cache.
        """
        count, k = len(document["rows"]), layout.k
        if not 0 < count <= MOST_IMAGES:
            raise ValueError(f"it is of {count} images, 1 to {MOST_IMAGES} are expected")
        tail = [[-np.inf if t is None else t for t in row] for row in document["tail"]]
        rows = _array(document["rows"], "int64", (count,), 0, layout.rows - 1)
        if (np.diff(rows) <= 0).any():
            raise ValueError("its rows are not ascending")
        return cls(
            rows,
            _array(document["labels"], "int64", (count,), 0, 2**31),
            _array(document["ids"], "int64", (count, k), 0, layout.class_count - 1),
            _array(document["logp"], "float16", (count, k), LOWEST_LOGP, 0),
            # a tail's log-mass may be above 0: at a high temperature it sums over many classes
            _array(tail, "float16", (count, layout.temperatures), -np.inf, 65504),
            _array(document["probability"], "float32", (count,), 0, 1),
            {str(name): float(value) for name, value in document["measures"].items()},
        )


def read_sample(cache: Cache) -> TeacherSample | None:
    """The teacher's answers from before the first block; None if it was not asked yet.

    Raises:
        DamagedRecords: the sample is damaged, or belongs to another cache.
    """
    data = cache.place.read(SAMPLE_KEY, at_most=MOST_ENTRY_BYTES)
    if data is None:
        return None
    try:
        owner, document = unseal(data, "sample")
        sample = TeacherSample.from_document(document, cache.layout)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        where = f"{cache.place}/{SAMPLE_KEY}"
        raise DamagedRecords(
            f"{where} is damaged ({error}): {repair_advice(cache.place)}"
        ) from None
    if owner != cache.owner:
        raise DamagedRecords(
            f"{cache.place}/{SAMPLE_KEY} belongs to another cache: {repair_advice(cache.place)}"
        )
    return sample


def keep_sample(cache: Cache, sample: TeacherSample) -> None:
    """Store the sample of a cache that has none; a sample that is there stays."""
    cache.place.add(SAMPLE_KEY, seal("sample", cache.owner, sample.to_document()))


def _array(
    values: Any, dtype: str, shape: tuple[int, ...], lowest: float, highest: float
) -> np.ndarray:
    found = np.asarray(values)
    kinds = "iu" if dtype == "int64" else "iuf"  # JSON may write 0.0 as 0
    if found.shape != shape or found.dtype.kind not in kinds:
        raise ValueError(f"it holds {found.dtype} {found.shape}, {dtype} {shape} is expected")
    if not ((found >= lowest) & (found <= highest)).all():
        raise ValueError(f"it holds values outside {lowest:g} to {highest:g}")
    return found.astype(dtype)
