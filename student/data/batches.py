"""Rendered pixels and the records of an epoch's slab -> batches, step by step in the seeded order.

B rows of a micro-batch, K kept classes.
"""

import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from student.data.run_plan import Plan
from student.data.slabs import POLL_S, Waiting, prefetched_slabs
from student.data.training_data import TrainingData
from student.data.unreadable import Unreadable
from student.losses.target import SparseTarget
from teacher_cache.cache.slab import Slab
from teacher_cache.errors import MissingRecords, printable
from teacher_cache.images.index import ImagesError
from teacher_cache.loading.loader import Loader, LoaderSettings, rendered
from teacher_cache.loading.queue import Rendered
from teacher_cache.loading.renderers import Request
from teacher_cache.record import TopK
from teacher_cache.verification.replay import require_same_images, require_same_pixels


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """One forward pass worth of images, labels and targets, on the host."""

    rows: np.ndarray
    pixels_BHWC: Tensor
    labels_B: Tensor
    target: SparseTarget | None


def batches(
    data: TrainingData, plan: Plan, *, start_step: int, settings: LoaderSettings
) -> "Batches":
    """One list of micro-batches for each step from `start_step` to the end of the run.

    While images or records are waited for, the lists are empty. The loader's workers begin to
    render at once.

    Raises:
        ImagesError: an image that cannot be read.
        WorkerDied: a loader's worker was killed or crashed.
        ReplayRefused: pixels that are not those the teacher saw.
        MissingRecords, DamagedRecords: from the cache.
        UserError: two micro-batches do not fit into `settings.memory_mb`.
    """
    at_once = 2 * plan.micro_batches_per_step  # a step's, and those of the next as they come
    settings = replace(
        settings,
        ahead=max(at_once, 2 * settings.workers, 4),
        in_use=at_once,
        lower="optimizer.micro_batch",
    )
    loader = rendered(
        data.renderer,
        _requests(data, plan, start_step),
        settings,
        largest=(1, plan.micro_batch),
    )
    return Batches(data, plan, start_step, loader)


class Batches(Iterator[list[MicroBatch]]):
    """The batches of a run, and how long whoever trains on them has waited for them."""

    def __init__(self, data: TrainingData, plan: Plan, start_step: int, loader: Loader) -> None:
        self.waited_s = 0.0
        """Seconds spent in `next` so far."""
        self.waiting_for: Literal["view", "images"] | None = None
        """Why the last list was empty."""
        self._loader = loader
        self._unreadable = Unreadable(data.index, data.unreadable)
        self._steps = self._all(data, plan, start_step)

    def __next__(self) -> list[MicroBatch]:
        """The next step's micro-batches; an empty list if they are not there within `POLL_S`."""
        started = time.perf_counter()
        self.waiting_for = None
        try:
            return next(self._steps)
        except BaseException:
            self.close()  # also at the end
            raise
        finally:
            self.waited_s += time.perf_counter() - started

    def close(self) -> None:
        """End the workers and the reading of records; batches that were handed out stay valid."""
        self._steps.close()
        self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _all(
        self, data: TrainingData, plan: Plan, start_step: int
    ) -> Generator[list[MicroBatch], None, None]:
        """Every step's micro-batches in turn, with the records of their epoch's view."""
        first_epoch, first_step = divmod(start_step, plan.steps_per_epoch)
        for slab in _slabs(data, plan, range(first_epoch, plan.epochs)):
            if isinstance(slab, Waiting):
                self.waiting_for = "view"
                yield []
                continue
            if slab is not None:
                _require_known_absences(data, slab)
            for _ in range(first_step, plan.steps_per_epoch):
                yield from self._step(data, plan, slab)
            first_step = 0

    def _step(
        self, data: TrainingData, plan: Plan, slab: Slab | None
    ) -> Iterator[list[MicroBatch]]:
        """One step's micro-batches, after an empty list for every `POLL_S` of waiting for images.

        It ends with the step, and its references with it: workers render into a slot of memory
        again once nothing refers to its pixels.
        """
        step_batches = []
        for _ in range(plan.micro_batches_per_step):
            while not self._loader.ready(POLL_S):
                self.waiting_for = "images"
                yield []
            images = next(self._loader)
            step_batches.append(_micro_batch(data, images, slab, self._unreadable))
            del images
        yield step_batches


def _slabs(data: TrainingData, plan: Plan, epochs: range) -> Iterable[Slab | Waiting | None]:
    """The slab of every epoch, in turn; None for each without a cache."""
    if data.cache is None or not epochs:
        return [None] * len(epochs)
    return prefetched_slabs(data, plan, epochs)


def _requests(data: TrainingData, plan: Plan, start_step: int) -> Iterator[Request]:
    """The pictures of every micro-batch of this rank, from a step to the end of the run."""
    first_epoch, first_step = divmod(start_step, plan.steps_per_epoch)
    for epoch in range(first_epoch, plan.epochs):
        own = plan.own_rows(data.rows, epoch)[first_step if epoch == first_epoch else 0 :]
        for rows_B in own.reshape(-1, plan.micro_batch):
            yield Request(rows_B, (data.view_of(epoch),))


def _micro_batch(
    data: TrainingData, images: Rendered, slab: Slab | None, unreadable: Unreadable
) -> MicroBatch:
    """Rendered images with their labels and targets, once they are proved to be the teacher's.

    Raises:
        ImagesError: an image that does not decode, unless such images are left out.
        ImagesChanged: an image whose bytes are not those that the teacher read.
        ReplayRefused: pixels that are not those the teacher saw.
    """
    if slab is not None:  # its absent rows are in no batch: another image that fails was changed
        assert data.cache is not None
        require_same_images(data.cache.sources, data.index, images)
    rows, pixels_BHWC = _readable(data, images, unreadable)
    target = None
    if slab is not None:
        require_same_pixels(data.index, images, slab.check)
        target = targets_of(slab, rows, data.temperature_column)
    return MicroBatch(rows, pixels_BHWC, torch.from_numpy(data.index.labels[rows]), target)


def _readable(
    data: TrainingData, images: Rendered, unreadable: Unreadable
) -> tuple[np.ndarray, Tensor]:
    """Rows [B] and pixels of a batch; the next readable image stands in for one that is not.

    So every batch keeps its size, and a run whose images can all be read keeps its bits.
    """
    readable_B = unreadable.readable(images)
    rows, pixels_BHWC = images.request.rows, images.pixels_GBHWC[0]
    if readable_B.all():
        return rows, pixels_BHWC
    there = np.flatnonzero(readable_B)
    if not len(there):
        raise ImagesError(
            f"none of {len(rows)} images of a batch can be read (first: "
            f"{data.index.name_of(int(rows[0]))}): repair them"
        )
    places = there[np.searchsorted(there, np.arange(len(rows))) % len(there)]
    return rows[places], pixels_BHWC[torch.from_numpy(places)]


def targets_of(slab: Slab, rows_B: np.ndarray, temperature_column: int) -> SparseTarget:
    """The records of some rows, ready for the loss."""
    at_B, moments_N2 = slab.positions_of(rows_B), slab.moments_N2
    # take() is 2 to 4 times as fast as indexing, which copies element by element
    records = TopK(
        slab.ids_NK.take(at_B, axis=0),
        slab.logp_NK.take(at_B, axis=0),
        slab.tail_NT.take(at_B, axis=0),
        None if moments_N2 is None else moments_N2.take(at_B, axis=0),
    )
    return target_of(records, temperature_column)


def target_of(records: TopK, temperature_column: int) -> SparseTarget:
    """Records, ready for the loss."""
    moments_B2 = records.moments_B2
    return SparseTarget(
        ids_BK=torch.from_numpy(records.ids_BK.astype(np.int64)),
        logp_BK=torch.from_numpy(records.logp_BK).float(),
        tail_B=torch.from_numpy(records.tail_BT[:, temperature_column]).float(),
        moments_B2=None if moments_B2 is None else torch.from_numpy(moments_B2).float(),
    )


def _require_known_absences(data: TrainingData, slab: Slab) -> None:
    """Refuse a view without the records of an image that this run trains on.

    Raises:
        MissingRecords: saying how many, and which is the first.
    """
    surprising = slab.absent_rows.intersection(data.rows.tolist())
    if surprising:
        row = min(surprising)
        raise MissingRecords(
            f"view {slab.view} of the cache lacks {len(surprising)} images (first: "
            f"{printable(data.index.keys[row])}) that cache-teacher found unreadable after this "
            "run had started: run the same command again, which leaves them out from its first step"
        )
