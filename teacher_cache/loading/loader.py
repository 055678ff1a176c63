"""Pixels in bulk: rows x views rendered in worker processes, in the order asked for.

Workers write straight into memory that they share with the reader; only marks and places go through
pipes. A request is cut into parts, so that all workers are at the one that is needed next.

G views, B rows.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from teacher_cache.errors import UserError
from teacher_cache.loading.pinned import Pin
from teacher_cache.loading.queue import Rendered, RenderQueue, render_here
from teacher_cache.loading.renderers import Renderer, Request
from teacher_cache.loading.shared_memory import ALIGNMENT, SharedBytes, Slots
from teacher_cache.loading.workers import start_workers


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """How much of the machine rendering may take; nothing here changes a pixel."""

    workers: int
    """Processes; 0 renders in the reader's own."""
    memory_mb: int = 1024
    """Rendered pixels that may wait or be read, in 10^6 bytes: the bound of decode-ahead."""
    ahead: int | None = None
    """Requests that may wait, at least 2; None: twice the workers, at least 4."""
    held: int = 2
    """Requests whose pixels the reader has at once, such as the one it works on and the next: where
    memory is short of them it gets copies."""
    pinned: bool = False
    """Page-lock the memory, so that copies to a CUDA device need not wait."""
    start_method: str | None = None
    """fork, forkserver or spawn; None: this Python's default."""


def rendered(
    renderer: Renderer,
    requests: Iterable[Request],
    settings: LoaderSettings,
    *,
    largest: tuple[int, int],
) -> "Loader":
    """Render requests in order, ahead of the reader; workers start at once.

    Args:
        renderer: what to do with a request.
        requests: taken as there is room, in this process.
        settings: workers and memory.
        largest: views and rows of the largest request.

    Raises:
        UserError: two such requests do not fit into `memory_mb`.
    """
    if settings.workers == 0:
        return Loader(renderer, iter(requests), None)
    bytes_each = int(np.prod(renderer.shape(*largest), dtype=np.int64))
    slot = -(-bytes_each // ALIGNMENT) * ALIGNMENT
    allowed = settings.memory_mb * 1_000_000
    if 2 * slot > allowed:
        raise UserError(
            f"two batches of {largest[0]} views x {largest[1]} images are {2 * slot / 1e6:.0f} "
            f"MB, loader.memory_mb allows {settings.memory_mb}: set it to "
            f"{-(-2 * slot // 1_000_000)} or more, or ask for fewer images "
            "(optimizer.micro_batch, teacher.batch_size) or views (storage.views_per_tile) at once"
        )
    ahead = max(settings.ahead or max(2 * settings.workers, 4), 2)
    slots = Slots(min(allowed // slot, ahead + settings.held), slot)
    memory = SharedBytes(slots.count * slot)
    workers = start_workers(
        renderer, memory, workers=settings.workers, start_method=settings.start_method
    )
    memory.forget_file()
    pin = Pin.of(memory) if settings.pinned else None
    return Loader(
        renderer, iter(requests), RenderQueue(renderer, memory, workers, slots, ahead, pin)
    )


class Loader(Iterator[Rendered]):
    """An iterator over rendered requests that knows how long its reader has waited.

    Forgetting it, `close` and the end of the process end its workers; batches stay valid.
    """

    def __init__(
        self, renderer: Renderer, requests: Iterator[Request], queue: "RenderQueue | None"
    ) -> None:
        self.waited_s = 0.0
        """Seconds that the reader has spent in here so far."""
        self._renderer = renderer
        self._requests = requests
        self._queue = queue
        if queue is not None:
            queue.fill(requests)

    def __next__(self) -> Rendered:
        """Wait for the next batch.

        Raises:
            WorkerDied: a worker was killed or crashed.
        """
        started = time.perf_counter()
        try:
            if self._queue is None:
                return render_here(self._renderer, next(self._requests))
            self._queue.advance(self._requests, None)
            return self._queue.take(self._requests)
        except BaseException:
            self.close()  # also at the end
            raise
        finally:
            self.waited_s += time.perf_counter() - started

    def ready(self, timeout_s: float) -> bool:
        """Wait for the next batch, or the end, but no longer than this; whether it is there."""
        if self._queue is None:
            return True
        started = time.perf_counter()
        try:
            return self._queue.advance(self._requests, timeout_s)
        except BaseException:
            self.close()
            raise
        finally:
            self.waited_s += time.perf_counter() - started

    def close(self) -> None:
        """End the workers; nothing is rendered after this, and batches stay valid."""
        if self._queue is not None:
            self._queue.workers.close()
        self._queue, self._requests = None, iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
