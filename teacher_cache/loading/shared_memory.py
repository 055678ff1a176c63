"""Memory that processes share: without a name, so that nothing is left of it whoever is killed.

On Linux a memfd: it needs no room in /dev/shm, of which Docker gives 64 MB. Elsewhere a temporary
file without a name.
"""

import mmap
import os
import tempfile
from heapq import heappop, heappush
from multiprocessing import reduction
from typing import Any

from teacher_cache.errors import UserError

ALIGNMENT = 4096
"""Bytes: slots start at pages."""


class NoMemory(UserError):
    """The memory that a loader was allowed is not to be had."""


class SharedBytes:
    """So many bytes, the same in this process and in those it starts with it as an argument."""

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
        """Pickled only while a process is being spawned, which inherits the file."""
        return _attach, (self.size, reduction.DupFd(self.fd))

    def forget_file(self) -> None:
        """Close the file behind the memory, which stays: no further process can be given it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.forget_file()


class Slots:
    """Equal parts of some memory, taken and given back; the lowest first, so warm ones are."""

    def __init__(self, count: int, size: int) -> None:
        self.size = size
        """Bytes of each."""
        self.count = count
        self._free = [number * size for number in range(count)]  # sorted: a heap
        self._taken: set[int] = set()

    @property
    def taken(self) -> int:
        """How many are taken."""
        return len(self._taken)

    def take(self) -> int | None:
        """First byte of a free slot; None while there is none."""
        if not self._free:
            return None
        start = heappop(self._free)
        self._taken.add(start)
        return start

    def give_back(self, start: int) -> None:
        """Free the slot that starts here."""
        if start not in self._taken:
            raise ValueError(f"no taken slot starts at {start}: taken are {sorted(self._taken)}")
        self._taken.remove(start)
        heappush(self._free, start)


def _attach(size: int, duplicate: Any) -> SharedBytes:
    return SharedBytes(size, duplicate.detach())


def _anonymous_file(size: int) -> int:
    try:
        fd = os.memfd_create("retort-loader")
    except (AttributeError, OSError):  # not Linux, or a sandbox without it
        with tempfile.TemporaryFile(prefix="retort-loader-") as file:
            fd = os.dup(file.fileno())
    try:
        os.truncate(fd, size)
    except OSError:
        os.close(fd)
        raise
    return fd
