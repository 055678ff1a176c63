"""One logging interval: its losses stay on the device until it ends."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from student.data.batches import MicroBatch
from student.ranks import ALONE, Ranks
from teacher_cache.errors import UserError
from teacher_cache.stopwatch import Stopwatch

SHARES = ("data_wait", "copy", "compute")
"""For what training is held up; `ranks`, waiting for each other, where there are several."""


class TrainingError(UserError):
    """A run that must not go on."""


@dataclass(slots=True)
class Interval:
    """Losses since the last logged line, fetched from the device once an interval."""

    keys: Sequence[str]
    """Image keys by row, to name the images of a batch that went wrong."""
    ranks: Ranks = ALONE
    steps: list[int] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)
    images: int = 0
    watch: Stopwatch = field(default_factory=Stopwatch)

    def add(self, step: int, step_batches: Sequence[MicroBatch], losses: Tensor) -> None:
        """Remember one step without waiting for the device."""
        self.steps.append(step)
        self.rows.append(np.concatenate([batch.rows for batch in step_batches]))
        self.losses.append(losses)
        self.images += len(self.rows[-1]) * self.ranks.count

    def summarize(self) -> dict[str, float]:
        """Means over the interval and the ranks, speed and shares; it ends here.

        All ranks do this together.

        Raises:
            TrainingError: a loss that is not finite, with its step and images.
            RankLost: another rank has ended.
        """
        means = self.require_finite().mean(axis=0)
        speed = self.images / (time.monotonic() - self.since)
        self.steps, self.rows, self.losses = [], [], []
        self.restart_clock()
        return dict(zip(("loss", "ce", "kd"), means.tolist(), strict=True)) | {
            "images_per_s": round(speed, 1),
            **self.watch.shares(*SHARES),
        }

    def require_finite(self) -> np.ndarray:
        """The interval's losses [steps, 3], means over the ranks; raises like `summarize`."""
        if not self.losses:
            return np.zeros((0, 3))
        with self.watch.during("compute"):  # the device is waited for
            own = torch.stack(self.losses).double().cpu().numpy()
            found = self.ranks.gather((own, self._complaint(own)))
        for _, complaint in found:
            if complaint is not None:
                raise TrainingError(complaint)
        return sum((losses for losses, _ in found), np.zeros_like(own)) / self.ranks.count

    def restart_clock(self) -> None:
        """Begin to measure anew, so that the time before counts in no speed."""
        self.since, self.images = time.monotonic(), 0

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """Leave the time inside out of speed and shares: it is not training."""
        started = time.monotonic()
        with self.watch.stopped():
            yield
        self.since += time.monotonic() - started

    def _complaint(self, losses: np.ndarray) -> str | None:
        bad = np.flatnonzero(~np.isfinite(losses[:, 0]))
        if not len(bad):
            return None
        at = int(bad[0])
        keys = ", ".join(self.keys[row] for row in self.rows[at].tolist())
        total, ce, kd = losses[at]
        return (
            f"the loss of step {self.steps[at]} is {total} (CE {ce}, KD {kd}), expected a "
            "finite number: nothing was saved since the last good state; lower optimizer.lr, "
            f"or look at the batch's images: {keys}"
        )
