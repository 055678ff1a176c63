"""Memory that processes share: without a name, so that nothing is left of it whoever is killed.

On Linux a memfd: it needs no room in /dev/shm, of which Docker gives 64 MB. Elsewhere a temporary
file without a name.
"""

import mmap
import os
import tempfile
from bisect import bisect
from multiprocessing import reduction
from typing import Any

from teacher_cache.errors import UserError

ALIGNMENT = 4096
"""Bytes: places start at pages, so that no two workers write one cache line."""


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


class Places:
    """Which parts of some memory are taken; pure bookkeeping, first fit, lowest place first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._starts: list[int] = []
        self._ends: list[int] = []

    def take(self, size: int) -> int | None:
        """Start of a free place of `size` bytes; None while there is none."""
        start = 0
        for at, taken in enumerate([*self._starts, self.size]):
            if taken - start >= size:
                self._starts.insert(at, start)
                self._ends.insert(at, start + size)
                return start
            if at < len(self._ends):
                start = -(-self._ends[at] // ALIGNMENT) * ALIGNMENT
        return None

    def give_back(self, start: int) -> None:
        """Free the place that starts here."""
        at = bisect(self._starts, start) - 1
        if at < 0 or self._starts[at] != start:
            raise ValueError(f"no place starts at {start}: taken are {self._starts}")
        del self._starts[at], self._ends[at]


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
