"""Worker processes render rows x views, and the reader gets them in the order asked for.

Workers write straight into memory that they share with the reader; only checksums and offsets go
through pipes. A request is cut into parts, so that all workers render the request that is needed
next.

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
    """How much of the machine rendering may take; no setting changes a pixel."""

    workers: int
    """Worker processes; with 0 the reader's own process renders."""
    memory_mb: int = 1024
    """Shared memory for pixels that wait or are being read, in 10^6 bytes."""
    ahead: int | None = None
    """Requests that may be rendered ahead of the reader, at least 2; None means twice the workers,
    and at least 4."""
    in_use: int = 2
    """Requests whose pixels the reader uses at the same time, such as the one that it works on and
    the next. Where the memory has no room for them the reader gets copies."""
    pinned: bool = False
    """Page-lock the memory, so that copies to a CUDA device need not wait."""
    lower: str = "the number of images at once"
    """What a user lowers where two requests do not fit into the memory."""
    start_method: str | None = None
    """fork, forkserver or spawn; None means the default of this Python."""


def rendered(
    renderer: Renderer,
    requests: Iterable[Request],
    settings: LoaderSettings,
    *,
    largest: tuple[int, int],
) -> "Loader":
    """Render requests in their order and ahead of the reader; the workers start at once.

    Args:
        renderer: what to do with a request.
        requests: this process takes one whenever there is room for it.
        settings: workers and memory.
        largest: views and rows of the largest request.

    Raises:
        UserError: two requests of the largest size do not fit into `memory_mb`.
    """
    if settings.workers == 0:
        return Loader(renderer, iter(requests), None)
    bytes_each = int(np.prod(renderer.shape(*largest), dtype=np.int64))
    slot = -(-bytes_each // ALIGNMENT) * ALIGNMENT
    allowed = settings.memory_mb * 1_000_000
    # One slot is with the reader while workers write into another.
    if 2 * slot > allowed:
        raise UserError(
            f"two batches of {largest[0]} views x {largest[1]} images are {2 * slot / 1e6:.0f} "
            f"MB, loader.memory_mb allows {settings.memory_mb}: set it to "
            f"{-(-2 * slot // 1_000_000)} or more, or lower {settings.lower}"
        )
    ahead = max(settings.ahead or max(2 * settings.workers, 4), 2)
    slots = Slots(min(allowed // slot, ahead + settings.in_use), slot)
    memory = SharedBytes(slots.count * slot)
    workers = start_workers(
        renderer, memory, workers=settings.workers, start_method=settings.start_method
    )
    memory.forget_file()  # all workers have been started and inherited it
    pin = Pin.of(memory) if settings.pinned else None
    return Loader(
        renderer, iter(requests), RenderQueue(renderer, memory, workers, slots, ahead, pin)
    )


class Loader(Iterator[Rendered]):
    """An iterator over rendered requests that knows how long its reader has waited.

    The workers end when it is closed or no longer referred to, and with the process; batches that
    the reader got stay valid.
    """

    def __init__(
        self, renderer: Renderer, requests: Iterator[Request], queue: "RenderQueue | None"
    ) -> None:
        self.waited_s = 0.0
        """Seconds that the reader has waited in `__next__` and `ready` so far."""
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
            self.close()  # the workers end at StopIteration as well
            raise
        finally:
            self.waited_s += time.perf_counter() - started

    def ready(self, timeout_s: float) -> bool:
        """Wait for the next batch, or the end, but no longer than this; True if it is there."""
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
        """End the workers: nothing more is rendered, and batches that the reader got stay valid."""
        if self._queue is not None:
            self._queue.workers.close()
        self._queue, self._requests = None, iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
