"""Page-locked memory: copies from it to a CUDA device go on while the program does."""

import logging
import os
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Self

import numpy as np
import torch

from teacher_cache.loading.shared_memory import SharedBytes

logger = logging.getLogger(__name__)


class Pin:
    """Page-locked memory, and the copies to a device that may still read from it."""

    def __init__(self, memory: SharedBytes) -> None:
        self._copies: deque[tuple[int, Any]] = deque()
        view = np.frombuffer(memory.memory, np.uint8)
        self._undo = weakref.finalize(memory, _unlock, view.ctypes.data, os.getpid())

    @classmethod
    def of(cls, memory: SharedBytes) -> Self | None:
        """Lock it after the workers were forked; None without CUDA, or where that is refused."""
        if not torch.cuda.is_available():
            return None
        address = np.frombuffer(memory.memory, np.uint8).ctypes.data
        refused = int(torch.cuda.cudart().cudaHostRegister(address, memory.size, 0))
        if refused:
            _forget_error()
            logger.warning(
                "%.0f MB of memory cannot be page-locked (CUDA error %d): copies to the device "
                "will wait; raise `ulimit -l`, or lower loader.memory_mb",
                memory.size / 1e6,
                refused,
            )
            return None
        return cls(memory)

    def hold_until_copied(self, start: int) -> None:
        """The reader let go of this slot; what the stream that is current here, where the reader
        asks for the next batch, was told to copy may not be done.
        """
        event = torch.cuda.Event()
        event.record()
        self._copies.append((start, event))

    def copied(self) -> Iterator[int]:
        """Slots that no copy reads from any more."""
        while self._copies and self._copies[0][1].query():
            yield self._copies.popleft()[0]

    def wait_for_one(self) -> None:
        """Wait until no copy reads from the slot that was let go of first."""
        if self._copies:
            self._copies[0][1].synchronize()


def _unlock(address: int, locked_by: int) -> None:
    if os.getpid() != locked_by:
        return  # a forked child forgets its copy of an object; it must not touch CUDA
    torch.cuda.synchronize()  # a copy may still read from it
    torch.cuda.cudart().cudaHostUnregister(address)


def _forget_error() -> None:
    """CUDA remembers a refused call, and torch would raise it at the next kernel's launch."""
    with suppress(RuntimeError):
        torch.ones(1, device="cuda")  # launches one, whose check takes the error away
