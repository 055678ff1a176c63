"""Memory that processes share. It has no name, so nothing of it remains when a process is killed.

On Linux it is a memfd, which takes no room in /dev/shm, of which Docker gives 64 MB. Elsewhere it
is a temporary file without a name.
"""

import mmap
import os
import tempfile
from heapq import heappop, heappush
from multiprocessing import reduction
from typing import Any

from teacher_cache.errors import UserError

ALIGNMENT = 4096
"""Slots start at multiples of so many bytes: at pages."""


class NoMemory(UserError):
    """The system does not give the memory that a loader may use."""


class SharedBytes:
    """Memory of this process and of those that it starts with this object as an argument."""

    def __init__(self, size: int, fd: int | None = None) -> None:
        self.size = size
        self.fd = -1
        try:
            self.fd = _anonymous_file(size) if fd is None else fd
            self.memory = mmap.mmap(self.fd, size)
        except (OSError, OverflowError) as error:
            raise NoMemory(
                f"{size / 1e6:.0f} MB to hand batches from worker to reader cannot be had "
                f"({error}): lower loader.memory_mb, or set loader.workers = 0"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it for a process that is being spawned, which inherits the file."""
        return _attach, (self.size, reduction.DupFd(self.fd))

    def forget_file(self) -> None:
        """Close the file behind the memory. The memory stays, but no further process can get it."""
        if self.fd >= 0:
            os.close(self.fd)  # `mmap` has its own duplicate
            self.fd = -1

    def __del__(self) -> None:
        self.forget_file()


class Slots:
    """Equal parts of some memory, to be taken and given back.

    The lowest free slot is taken first, as its pages are most likely to be in use already.
    """

    def __init__(self, count: int, size: int) -> None:
        self.size = size
        """Bytes of each slot."""
        self.count = count
        self._free = [number * size for number in range(count)]  # a sorted list is a heap
        self._taken: set[int] = set()

    @property
    def taken(self) -> int:
        """How many slots are taken."""
        return len(self._taken)

    def take(self) -> int | None:
        """Take a free slot: its first byte, or None if no slot is free."""
        if not self._free:
            return None
        start = heappop(self._free)
        self._taken.add(start)
        return start

    def give_back(self, start: int) -> None:
        """Free the slot that starts at this byte."""
        if start not in self._taken:
            raise ValueError(f"no taken slot starts at {start}: taken are {sorted(self._taken)}")
        self._taken.remove(start)
        heappush(self._free, start)


def _attach(size: int, duplicate: Any) -> SharedBytes:
    return SharedBytes(size, duplicate.detach())


def _anonymous_file(size: int) -> int:
    try:
        fd = os.memfd_create("retort-loader")
    except (AttributeError, OSError):  # not Linux, or a sandbox that forbids memfd
        with tempfile.TemporaryFile(prefix="retort-loader-") as file:
            fd = os.dup(file.fileno())
    try:
        os.truncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd
