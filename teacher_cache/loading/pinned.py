"""Page-locked memory, from which a CUDA device copies while the program goes on."""

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
        """Page-lock some memory; None where there is no CUDA device, or CUDA refuses.

        Workers must have been forked before: a forked process cannot use CUDA.
        """
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
        """Keep a slot that the reader has released until all copies from it are done.

        Copies are queued on a stream. This runs where the reader asks for the next batch, so the
        stream that is current here is the one that the copies were queued on.
        """
        event = torch.cuda.Event()
        event.record()
        self._copies.append((start, event))

    def copied(self) -> Iterator[int]:
        """The slots that no copy reads from any more; each is given once."""
        while self._copies and self._copies[0][1].query():
            yield self._copies.popleft()[0]

    def wait_for_one(self) -> None:
        """Wait for the copies from the slot that the reader released first."""
        if self._copies:
            self._copies[0][1].synchronize()


def _unlock(address: int, locked_by: int) -> None:
    if os.getpid() != locked_by:
        return  # the finalizer also runs in a forked child, which must not touch CUDA
    torch.cuda.synchronize()  # a copy may still read from it
    torch.cuda.cudart().cudaHostUnregister(address)


def _forget_error() -> None:
    """Clear CUDA's last error, which torch would else raise when it launches its next kernel."""
    with suppress(RuntimeError):
        torch.ones(1, device="cuda")  # launches a kernel; torch's check after it clears the error
