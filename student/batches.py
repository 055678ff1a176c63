"""Slab + seeded order + rendered pixels -> batches, step by step and in one fixed order.

B rows of a micro-batch, K kept classes.
"""

import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from threading import Event
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from student.data import TrainingData
from student.follow import POLL_S, await_slab
from student.loss import SparseTarget
from student.order import epoch_order
from student.ranks import ALONE, Ranks
from student.recipe import StudentRecipe
from teacher_cache.errors import MissingRecords, printable
from teacher_cache.images import ImagesError
from teacher_cache.loader import Loader, LoaderSettings, Rendered, Request, rendered
from teacher_cache.replay import require_same_images, require_same_pixels
from teacher_cache.shared_slab import SharedSlabs
from teacher_cache.slab import Slab, read_slab
from teacher_cache.store import Cache


@dataclass(frozen=True, slots=True, eq=False)
class MicroBatch:
    """One forward pass worth of images, labels and targets, on the host."""

    rows: np.ndarray
    pixels_BHWC: Tensor
    labels_B: Tensor
    target: SparseTarget | None


@dataclass(frozen=True, slots=True)
class Plan:
    """How many steps there are, and which rows each shows."""

    epochs: int
    steps_per_epoch: int
    batch_size: int
    micro_batch: int
    seed: int
    ranks: Ranks = ALONE
    """Who of how many this process is: it shows its own share of every batch."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def micro_batches_per_step(self) -> int:
        """This rank's forward passes of one optimizer step."""
        return self.batch_size // (self.micro_batch * self.ranks.count)


def plan_run(recipe: StudentRecipe, data: TrainingData, ranks: Ranks = ALONE) -> Plan:
    """Cut every epoch into whole batches; the few rows left over differ from epoch to epoch.

    Raises:
        ImagesError: fewer images than one batch.
        RanksError: a batch that the ranks cannot share.
    """
    batch_size = recipe.optimizer.batch_size
    if len(data.rows) < batch_size:
        raise ImagesError(
            f"optimizer.batch_size is {batch_size}, the data holds {len(data.rows)} images: "
            f"set it to {len(data.rows)} or less"
        )
    return Plan(
        epochs=recipe.schedule.epochs,
        steps_per_epoch=len(data.rows) // batch_size,
        batch_size=batch_size,
        micro_batch=ranks.micro_batch(
            batch_size=batch_size, micro_batch=recipe.optimizer.micro_batch
        ),
        seed=recipe.run.seed,
        ranks=ranks,
    )


def batches(
    data: TrainingData, plan: Plan, *, start_step: int, settings: LoaderSettings
) -> "Batches":
    """One list of micro-batches a step, from `start_step` to the end; empty ones while waiting.

    Workers begin at once.

    Raises:
        ImagesError: an image that cannot be read.
        WorkerDied: a loader's worker was killed or crashed.
        ReplayRefused: pixels that are not those the teacher saw.
        MissingRecords, DamagedRecords: from the cache.
        UserError: two micro-batches do not fit into `settings.memory_mb`.
    """
    at_once = 2 * plan.micro_batches_per_step  # a step's, and those of the next as they come
    settings = replace(settings, ahead=max(at_once, 2 * settings.workers, 4), held=at_once)
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
        self._steps = self._all(data, plan, start_step)

    def __next__(self) -> list[MicroBatch]:
        """The next step's micro-batches; none after `POLL_S` without them."""
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
        """End workers and reading; batches already given stay valid."""
        self._steps.close()
        self._loader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _all(
        self, data: TrainingData, plan: Plan, start_step: int
    ) -> Generator[list[MicroBatch], None, None]:
        step = start_step
        for slab in _slabs(data, plan, start_step):
            if isinstance(slab, Waiting):
                self.waiting_for = "view"
                yield []
                continue
            if slab is not None:
                _require_known_absences(data, slab)
            for _ in range(plan.steps_per_epoch - step % plan.steps_per_epoch):
                step_batches = []
                for _ in range(plan.micro_batches_per_step):
                    while not self._loader.ready(POLL_S):
                        self.waiting_for = "images"
                        yield []
                    step_batches.append(_micro_batch(data, next(self._loader), slab))
                yield step_batches
                # what is still referred to here could not be rendered into
                del step_batches
                step += 1


def _slabs(data: TrainingData, plan: Plan, start_step: int) -> "Iterable[Slab | Waiting | None]":
    """The slab of every epoch from this step on; None without a cache."""
    if start_step == plan.total_steps:
        return []
    views = [data.view_of(e) for e in range(start_step // plan.steps_per_epoch, plan.epochs)]
    if data.cache is None:
        return [None] * len(views)
    return prefetched_slabs(
        data.cache, views, follow_timeout_s=data.follow_timeout_s, ranks=plan.ranks
    )


@dataclass(frozen=True, slots=True)
class Waiting:
    """The view that is needed next is still being filled."""

    view: int


def prefetched_slabs(
    cache: Cache, views: list[int], *, follow_timeout_s: float | None = None, ranks: Ranks = ALONE
) -> Iterator[Slab | Waiting]:
    """The slabs of these views in turn; while one is used, a thread reads the next.

    Ranks of one host share them: the first reads, the others map the same memory.
    """
    cancelled = Event()
    load = read_slab
    if follow_timeout_s is not None:
        load = partial(await_slab, timeout_s=follow_timeout_s, cancelled=cancelled)
    slabs = SharedSlabs(
        ranks.host, local_rank=ranks.local_number, local_world_size=ranks.local_count
    )

    with ThreadPoolExecutor(1, thread_name_prefix="slab") as pool:
        try:
            following = pool.submit(slabs.read, cache, views[0], load)
            for view, after in zip(views, [*views[1:], None], strict=True):
                while follow_timeout_s is not None and not wait([following], POLL_S).done:
                    yield Waiting(view)
                slab = following.result()
                if after is not None:
                    following = pool.submit(slabs.read, cache, after, load)
                yield slab
        finally:
            cancelled.set()
            slabs.close()


def _requests(data: TrainingData, plan: Plan, start_step: int) -> Iterator[Request]:
    first_epoch, first_step = divmod(start_step, plan.steps_per_epoch)
    for epoch in range(first_epoch, plan.epochs):
        order = epoch_order(data.rows, seed=plan.seed, epoch=epoch)
        start = first_step * plan.batch_size if epoch == first_epoch else 0
        for at in range(start, plan.steps_per_epoch * plan.batch_size, plan.batch_size):
            own = plan.ranks.share(order[at : at + plan.batch_size])
            for first in range(0, len(own), plan.micro_batch):
                yield Request(own[first : first + plan.micro_batch], (data.view_of(epoch),))


def _micro_batch(data: TrainingData, images: Rendered, slab: Slab | None) -> MicroBatch:
    for row, reason in images.unreadable.items():
        raise ImagesError(
            f"{data.index.name_of(row)}: {reason}: repair or remove it; the state "
            "saved last is kept, and the same command continues from it"
        )
    rows = images.request.rows
    target = None
    if slab is not None:
        assert data.cache is not None
        require_same_images(data.cache.sources, data.index, images)
        require_same_pixels(data.index, images, slab.check)
        target = targets_of(slab, rows, data.temperature_column)
    return MicroBatch(
        rows, images.pixels_GBHWC[0], torch.from_numpy(data.index.labels[rows]), target
    )


def targets_of(slab: Slab, rows: np.ndarray, temperature_column: int) -> SparseTarget:
    """The records of some rows [B], ready for the loss."""
    # take() is 2 to 4 times as fast as indexing, which copies element by element
    return SparseTarget(
        ids_BK=torch.from_numpy(slab.ids_NK.take(rows, axis=0).astype(np.int64)),
        logp_BK=torch.from_numpy(slab.logp_NK.take(rows, axis=0)).float(),
        tail_B=torch.from_numpy(slab.tail_NT[rows, temperature_column]).float(),
    )


def _require_known_absences(data: TrainingData, slab: Slab) -> None:
    surprising = slab.absent_rows.intersection(data.rows.tolist())
    if surprising:
        row = min(surprising)
        raise MissingRecords(
            f"view {slab.view} of the cache lacks {len(surprising)} images (first: "
            f"{printable(data.index.keys[row])}) that cache-teacher found unreadable after this "
            "run had started: run the same command again, which leaves them out from its first step"
        )
