"""The requests that workers render: their parts, their slots of shared memory, their order.

G views, B rows.
"""

import math
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from teacher_cache.loading.pinned import Pin
from teacher_cache.loading.renderers import Marks, Renderer, Request
from teacher_cache.loading.shared_memory import SharedBytes, Slots
from teacher_cache.loading.workers import Answer, Part, Workers

PART_IMAGES = 32
"""The most images (rows x views) of one part: so few that workers finish a request together."""


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """The pixels of one request."""

    request: Request
    pixels_GBHWC: Tensor
    """uint8; zeros where the image is unreadable. It is a view of shared memory, which is written
    again once the last tensor over it is gone."""
    marks: Marks
    """The checksums, and which images are unreadable."""

    @property
    def checks(self) -> dict[tuple[int, int], int]:
        """(view, row) -> CRC-32 of the pixels at the cache's size, for checked rows."""
        return self.marks.checks

    @property
    def unreadable(self) -> dict[int, str]:
        """Row -> why the bytes of its image cannot be decoded."""
        return self.marks.unreadable

    @property
    def sources_B(self) -> np.ndarray:  # noqa: N802  (a shape suffix)
        """uint32 [B] CRC-32C of the bytes of each row's image, as they were read."""
        return np.array([self.marks.sources[row] for row in self.request.rows.tolist()], np.uint32)


def render_here(renderer: Renderer, request: Request) -> Rendered:
    """Render one request in this process."""
    pixels = np.empty(renderer.shape(len(request.views), len(request.rows)), np.uint8)
    marks = renderer.render_into(request, pixels)
    return Rendered(request, torch.from_numpy(pixels), marks)


@dataclass(slots=True, eq=False)
class QueuedRequest:
    """A request that workers render."""

    request: Request
    start: int
    """First byte of its slot in the shared memory."""
    shape: tuple[int, int, int, int, int]
    """(G, B, H, W, 3)."""
    marks: list[Marks | None]
    """The marks of each part; None until a worker has answered."""

    @property
    def is_done(self) -> bool:
        """Whether all its parts are rendered."""
        return all(marks is not None for marks in self.marks)


@dataclass(slots=True, eq=False)
class RenderQueue:
    """Requests in their order, the workers that render them, and the slots of shared memory."""

    renderer: Renderer
    memory: SharedBytes
    workers: Workers
    slots: Slots
    ahead: int
    pin: Pin | None
    queued: deque[QueuedRequest] = field(default_factory=deque)
    """Requests that the reader has not got yet, in order."""
    waiting: deque[Part] = field(default_factory=deque)
    """Parts that no worker has got yet."""
    postponed: Request | None = None
    """The request after the last queued one, for which there was no slot."""
    is_last: bool = False
    """Whether there are no further requests."""
    taken: int = 0
    """How many requests the reader has got: the sequence number of the first of `queued`."""
    returned: deque[int] = field(default_factory=deque)
    """Slots whose last tensor is gone. Whichever thread drops the tensor appends here, which a
    deque allows without a lock."""

    def fill(self, requests: Iterator[Request]) -> None:
        """Queue what there is room for, and give parts to workers that can take more."""
        self._reclaim()
        while len(self.queued) < self.ahead and not self.is_last:
            request = self.postponed if self.postponed is not None else next(requests, None)
            self.postponed = None
            if request is None:
                self.is_last = True
                break
            start = self.slots.take()
            if start is None:
                self.postponed = request
                break
            self._append(request, start)
        while self.waiting and self.workers.give(self.waiting[0]):
            self.waiting.popleft()

    def advance(self, requests: Iterator[Request], timeout_s: float | None) -> bool:
        """Work until the next request is rendered, or there is none.

        Returns:
            False if the time was over before.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._note(self.workers.answers(0))
            self.fill(requests)
            if not self.queued or self.queued[0].is_done:
                return True
            remaining_s = None if deadline is None else deadline - time.monotonic()
            if remaining_s is not None and remaining_s <= 0:
                return False
            self._note(self.workers.answers(remaining_s))

    def take(self, requests: Iterator[Request]) -> Rendered:
        """Return the next request's pixels; `advance` must have returned True before."""
        if not self.queued and self.postponed is not None and self.pin is not None:
            # The reader has released all slots, but the device still copies from them.
            self.pin.wait_for_one()
            self.advance(requests, None)
        if not self.queued:
            raise StopIteration
        first = self.queued.popleft()
        self.taken += 1
        pixels = np.ndarray(first.shape, np.uint8, self.memory.memory, first.start)
        found = Marks({}, {}, {})
        for marks in first.marks:
            assert marks is not None
            found.checks.update(marks.checks)
            found.unreadable.update(marks.unreadable)
            found.sources.update(marks.sources)
        with_reader = self.slots.taken - len(self.queued) - 1
        if self.postponed is not None and with_reader:
            # A request waits for a slot while the reader still uses one: a copy frees this slot at
            # once. So the reader never has all slots; there are two at least, and workers need one.
            pixels = pixels.copy()
            self.slots.give_back(first.start)
        else:
            # NumPy and torch keep a reference to this array in every view and tensor over it, so
            # its finalizer runs when the last of them is gone
            weakref.finalize(pixels, self.returned.append, first.start).atexit = False
        return Rendered(first.request, torch.from_numpy(pixels), found)

    def _append(self, request: Request, start: int) -> None:
        shape = self.renderer.shape(len(request.views), len(request.rows))
        if math.prod(shape) > self.slots.size:
            raise ValueError(
                f"a request becomes {shape}, more than the {self.slots.size} bytes of "
                "the largest that the loader was told of"
            )
        sequence = self.taken + len(self.queued)
        views, rows = shape[:2]
        workers = len(self.workers.processes)
        size = max(min(-(-rows // workers), PART_IMAGES // views), 1)
        firsts = range(0, rows, size)
        for number, first in enumerate(firsts):
            part = Request(request.rows[first : first + size], request.views)
            self.waiting.append(Part(sequence, number, part, start, shape, first))
        self.queued.append(QueuedRequest(request, start, shape, [None] * len(firsts)))

    def _note(self, answers: Iterable[Answer]) -> None:
        for answer in answers:
            self.queued[answer.sequence - self.taken].marks[answer.number] = answer.marks

    def _reclaim(self) -> None:
        while self.returned:
            start = self.returned.popleft()
            if self.pin is None:
                self.slots.give_back(start)
            else:
                self.pin.hold_until_copied(start)
        if self.pin is not None:
            for start in self.pin.copied():
                self.slots.give_back(start)
