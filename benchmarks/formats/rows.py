"""What a reader returns, whatever the layout.

B rows of a batch, K kept classes, T temperatures.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from benchmarks.records import CLASSES


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Records as a layout holds them: log-probabilities, and the tail where it keeps one."""

    ids_BK: np.ndarray
    logp_BK: np.ndarray
    tail_BT: np.ndarray | None

    def at(self, rows: np.ndarray) -> "Rows":
        """These rows, in this order."""
        tail_BT = None if self.tail_BT is None else self.tail_BT[rows]
        return Rows(self.ids_BK[rows], self.logp_BK[rows], tail_BT)


class OpenView(ABC):
    """Reads one view for one epoch."""

    @abstractmethod
    def read_rows(self, rows: np.ndarray) -> Rows:
        """Records of these rows, in this order; a row comes once at most."""

    @abstractmethod
    def read_all(self) -> Rows:
        """The whole view, in the order of its rows."""

    def close(self) -> None:  # noqa: B027
        """Let go of open files; most readers keep none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class LoadedView(OpenView):
    """A reader of a layout that gives no row by itself: it loads the view at the first read."""

    _view: Rows | None = None

    def read_rows(self, rows: np.ndarray) -> Rows:
        if self._view is None:
            self._view = self.read_all()
        return self._view.at(rows)


def keys(count: int) -> Iterator[str]:
    """Names of images, as ImageNet's are, for the layouts that store them."""
    return (f"n{row % CLASSES:08}/n{row % CLASSES:08}_{row}.JPEG" for row in range(count))


def bytes_below(folder: Path) -> int:
    """Bytes of every file."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
