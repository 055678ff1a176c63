"""Pixels in bulk: rows x views rendered in worker processes, in the order asked for.

Workers write straight into memory that they share with the reader; only marks and places go through
pipes. A request is cut into parts, so that all workers are at the one that is needed next.

G views, B rows.
"""

import gc
import logging
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from teacher_cache.errors import UserError
from teacher_cache.renderers import CenterRenderer, Marks, Renderer, Request, ViewRenderer
from teacher_cache.shared_bytes import ALIGNMENT, Places, SharedBytes
from teacher_cache.workers import Part, WorkerDied, Workers, start_workers

__all__ = [
    "CenterRenderer",
    "Loader",
    "LoaderSettings",
    "Rendered",
    "Renderer",
    "Request",
    "ViewRenderer",
    "WorkerDied",
    "render_here",
    "rendered",
]

logger = logging.getLogger(__name__)

PART_IMAGES = 32
"""Pixels [H, W, 3] of one part, at most: small enough that workers finish together."""


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """How much of the machine rendering may take; nothing here changes a pixel."""

    workers: int
    """Processes; 0 renders in the reader's own."""
    memory_mb: int = 1024
    """Rendered pixels that may wait or be read, in 10^6 bytes: the bound of decode-ahead."""
    ahead: int | None = None
    """Requests that may wait; None: twice the workers, at least 4."""
    pinned: bool = False
    """Page-lock the memory, so that copies to a CUDA device need not wait."""
    start_method: str | None = None
    """fork, forkserver or spawn; None: this Python's default."""


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """The pixels of one request."""

    request: Request
    pixels_GBHWC: Tensor
    """uint8; zeros where the image is unreadable. No copy: its memory is written again once the
    last tensor over it is gone."""
    checks: dict[tuple[int, int], int]
    """(view, row) -> CRC-32 of the pixels at the cache's size, for the rows that are checked."""
    unreadable: dict[int, str]
    """Row -> why its image could not be read."""


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
    place = -(-bytes_each // ALIGNMENT) * ALIGNMENT
    allowed = settings.memory_mb * 1_000_000
    if 2 * place > allowed:
        raise UserError(
            f"two batches of {largest[0]} views x {largest[1]} images are {2 * place / 1e6:.0f} "
            f"MB, loader.memory_mb allows {settings.memory_mb}: set it to "
            f"{-(-2 * place // 1_000_000)} or more, or ask for fewer images "
            "(optimizer.micro_batch, teacher.batch_size) or views (storage.views_per_tile) at once"
        )
    ahead = settings.ahead or max(2 * settings.workers, 4)
    held = 2  # the reader's: the one it works on, and the next
    memory = SharedBytes(min(allowed // place, ahead + held) * place)
    workers = start_workers(
        renderer, memory, workers=settings.workers, start_method=settings.start_method
    )
    memory.forget_file()
    pin = _Pin.of(memory) if settings.pinned else None
    return Loader(renderer, iter(requests), _Shop(renderer, memory, workers, ahead, pin))


def render_here(renderer: Renderer, request: Request) -> Rendered:
    """Render one request in this process."""
    pixels = np.empty(renderer.shape(len(request.views), len(request.rows)), np.uint8)
    marks = renderer.render_into(request, pixels)
    return Rendered(request, torch.from_numpy(pixels), marks.checks, marks.unreadable)


class Loader(Iterator[Rendered]):
    """An iterator over rendered requests that knows how long its reader has waited.

    Forgetting it, `close` and the end of the process end its workers; batches stay valid.
    """

    def __init__(
        self, renderer: Renderer, requests: Iterator[Request], shop: "_Shop | None"
    ) -> None:
        self.waited_s = 0.0
        """Seconds that the reader has spent in here so far."""
        self._renderer = renderer
        self._requests = requests
        self._shop = shop
        if shop is not None:
            shop.fill(requests)

    def __next__(self) -> Rendered:
        """Wait for the next batch.

        Raises:
            WorkerDied: a worker was killed or crashed.
        """
        started = time.perf_counter()
        try:
            if self._shop is None:
                return render_here(self._renderer, next(self._requests))
            self._shop.advance(self._requests, None)
            return self._shop.take(self._requests)
        except BaseException:
            self.close()  # also at the end
            raise
        finally:
            self.waited_s += time.perf_counter() - started

    def ready(self, timeout_s: float) -> bool:
        """Wait for the next batch, or the end, but no longer than this; whether it is there."""
        if self._shop is None:
            return True
        started = time.perf_counter()
        try:
            return self._shop.advance(self._requests, timeout_s)
        except BaseException:
            self.close()
            raise
        finally:
            self.waited_s += time.perf_counter() - started

    def close(self) -> None:
        """End the workers; nothing is rendered after this, and batches stay valid."""
        if self._shop is not None:
            self._shop.workers.close()
        self._shop, self._requests = None, iter(())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(slots=True, eq=False)
class _Order:
    """A request that workers are at."""

    request: Request
    start: int
    shape: tuple[int, int, int, int, int]
    marks: list[Marks | None]
    """Of each part, once it is done."""

    @property
    def is_done(self) -> bool:
        return all(marks is not None for marks in self.marks)


@dataclass(slots=True, eq=False)
class _Shop:
    """Orders in the order of their requests, the workers that fill them, and the places."""

    renderer: Renderer
    memory: SharedBytes
    workers: Workers
    ahead: int
    pin: "_Pin | None"
    places: Places = field(init=False)
    orders: deque[_Order] = field(default_factory=deque)
    """What the reader has not been given yet, the next first."""
    waiting: deque[Part] = field(default_factory=deque)
    """Parts that no worker has been given yet."""
    postponed: Request | None = None
    """The request after the last order, for which there was no room."""
    is_last: bool = False
    taken: int = 0
    """Orders that the reader has been given: the sequence number of the first of `orders`."""
    returned: deque[int] = field(default_factory=deque)
    """Places whose last tensor is gone; appended to by whichever thread dropped it."""

    def __post_init__(self) -> None:
        self.places = Places(self.memory.size)

    def fill(self, requests: Iterator[Request]) -> None:
        """Order what there is room for, and give parts to workers whose hands are not full."""
        self._reclaim()
        while len(self.orders) < self.ahead and not self.is_last:
            request = self.postponed if self.postponed is not None else next(requests, None)
            self.postponed = None
            if request is None:
                self.is_last = True
                break
            shape = self.renderer.shape(len(request.views), len(request.rows))
            start = self.places.take(int(np.prod(shape, dtype=np.int64)))
            if start is None:
                self.postponed = request
                break
            self._order(request, start, shape)
        while self.waiting and self.workers.give(self.waiting[0]):
            self.waiting.popleft()

    def advance(self, requests: Iterator[Request], timeout_s: float | None) -> bool:
        """Work until the next order is done, or there is none; False: the time is over."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._note(self.workers.answers(0))
            self.fill(requests)
            if not self.orders or self.orders[0].is_done:
                return True
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            self._note(self.workers.answers(left))

    def take(self, requests: Iterator[Request]) -> Rendered:
        """Hand the next order over, once `advance` says so."""
        if not self.orders:
            if self.postponed is None:
                raise StopIteration
            return self._without_a_place(requests)
        order = self.orders.popleft()
        self.taken += 1
        pixels = np.ndarray(order.shape, np.uint8, self.memory.memory, order.start)
        # every view and tensor over these pixels refers to this array: numpy keeps the base
        weakref.finalize(pixels, self.returned.append, order.start).atexit = False
        checks: dict[tuple[int, int], int] = {}
        unreadable: dict[int, str] = {}
        for marks in order.marks:
            assert marks is not None
            checks |= marks.checks
            unreadable |= marks.unreadable
        return Rendered(order.request, torch.from_numpy(pixels), checks, unreadable)

    def _order(self, request: Request, start: int, shape: tuple[int, int, int, int, int]) -> None:
        sequence = self.taken + len(self.orders)
        views, rows = shape[:2]
        workers = len(self.workers.processes)
        size = max(min(-(-rows // workers), PART_IMAGES // views), 1)
        firsts = range(0, rows, size)
        for number, first in enumerate(firsts):
            part = Request(request.rows[first : first + size], request.views)
            self.waiting.append(Part(sequence, number, part, start, shape, first))
        self.orders.append(_Order(request, start, shape, [None] * len(firsts)))

    def _note(self, answers: Iterable[Any]) -> None:
        for answer in answers:
            self.orders[answer.sequence - self.taken].marks[answer.number] = answer.marks

    def _reclaim(self) -> None:
        while self.returned:
            start = self.returned.popleft()
            if self.pin is None:
                self.places.give_back(start)
            else:
                self.pin.hold_until_copied(start)
        if self.pin is not None:
            for start in self.pin.copied():
                self.places.give_back(start)

    def _without_a_place(self, requests: Iterator[Request]) -> Rendered:
        """The reader holds all places: let go of what only waits to be collected, or help out."""
        gc.collect()
        if self.pin is not None:
            self.pin.synchronize()
        self.fill(requests)
        if self.orders:
            self.advance(requests, None)
            return self.take(requests)
        logger.warning(
            "the reader holds all batches that fit into %.0f MB: this one is rendered in the "
            "reader's process, which is slow; raise loader.memory_mb, or keep fewer batches",
            self.memory.size / 1e6,
        )
        request, self.postponed = self.postponed, None
        assert request is not None
        return render_here(self.renderer, request)


class _Pin:
    """Page-locked memory, and the copies to a device that may still read from it."""

    def __init__(self, memory: SharedBytes) -> None:
        self._copies: deque[tuple[int, Any]] = deque()
        view = np.frombuffer(memory.memory, np.uint8)
        self._undo = weakref.finalize(memory, _unlock, view.ctypes.data)

    @classmethod
    def of(cls, memory: SharedBytes) -> Self | None:
        """Lock it after the workers were forked; None without CUDA, or where that is refused."""
        if not torch.cuda.is_available():
            return None
        address = np.frombuffer(memory.memory, np.uint8).ctypes.data
        refused = int(torch.cuda.cudart().cudaHostRegister(address, memory.size, 0))
        if refused:
            logger.warning(
                "%.0f MB of memory cannot be page-locked (CUDA error %d): copies to the device "
                "will wait; raise `ulimit -l`, or lower loader.memory_mb",
                memory.size / 1e6,
                refused,
            )
            return None
        return cls(memory)

    def hold_until_copied(self, start: int) -> None:
        """The reader let go of this place; what its stream was told to copy may not be done."""
        event = torch.cuda.Event()
        event.record()
        self._copies.append((start, event))

    def copied(self) -> Iterator[int]:
        """Places that no copy reads from any more."""
        while self._copies and self._copies[0][1].query():
            yield self._copies.popleft()[0]

    def synchronize(self) -> None:
        """Wait for all copies."""
        for _, event in self._copies:
            event.synchronize()


def _unlock(address: int) -> None:
    torch.cuda.synchronize()  # a copy may still read from it
    torch.cuda.cudart().cudaHostUnregister(address)
