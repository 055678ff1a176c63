"""Millions of names in one block of memory, which processes share if they map the same file.

N names.
"""

import mmap
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np

_ERRORS = sys.getfilesystemencodeerrors()
_STRIDE = 16
"""Of so many names the position of one is stored; the others are found by their NUL bytes."""


class Names(Sequence[str]):
    """Names as bytes of the file system, each ended by NUL, which no file name contains.

    As a str, a name would take 90 bytes and more in every process. Here it takes its own bytes,
    once for all processes that map the same file, and half a byte in each for its position.
    """

    __slots__ = ("_blob", "_path", "_starts", "_total")

    def __init__(self, blob: Any, path: Path | None = None) -> None:
        """Find the names in a buffer of bytes.

        Args:
            blob: the names, as bytes or any other object with a buffer of bytes.
            path: the file that the buffer maps, if any, so that other processes can map it, too.

        Raises:
            ValueError: the last name does not end in a NUL byte.
        """
        self._blob, self._path = memoryview(blob).cast("B"), path
        if len(self._blob) and self._blob[-1] != 0:
            raise ValueError("the last name does not end in a NUL byte")
        found = [np.zeros(1, np.int64)]
        self._total = 0
        for at in range(0, len(self._blob), 1 << 24):  # in pieces, which need little memory
            ends = np.flatnonzero(np.frombuffer(self._blob[at : at + (1 << 24)], np.uint8) == 0)
            first = -(self._total + 1) % _STRIDE
            found.append(ends[first::_STRIDE] + at + 1)
            self._total += len(ends)
        self._starts = np.concatenate(found)

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        """The same names in one block of memory."""
        if isinstance(names, cls):
            return names
        listed = list(names)
        # All names are encoded at once, as os.fsencode takes half a microsecond a name.
        joined = "\0".join([*listed, ""]).encode(sys.getfilesystemencoding(), _ERRORS)
        found = cls(joined)
        if len(found) != len(listed):
            raise ValueError("a name holds a NUL byte")
        return found

    @classmethod
    def mapped(cls, path: Path) -> Self:
        """Map a file of names.

        Raises:
            ValueError: the file is empty, or does not end in a NUL byte.
            OSError: the file cannot be read, or is no regular file.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{path} is no regular file")
            return cls(mmap.mmap(descriptor, 0, prot=mmap.PROT_READ), path)
        finally:
            os.close(descriptor)

    def encoded(self) -> list[bytes]:
        """Every name as bytes of the file system; the list takes much memory while it lives."""
        return bytes(self._blob).split(b"\0")[:-1]

    @property
    def blob(self) -> memoryview:
        """All names, each ended by NUL."""
        return self._blob

    def take(self, rows: np.ndarray) -> "Names":
        """The names [M] of some rows, in the order of `rows`."""
        return Names.of(self[row] for row in rows.tolist())

    def __len__(self) -> int:
        """N."""
        return self._total

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> tuple[str, ...]: ...
    def __getitem__(self, row: int | slice) -> str | tuple[str, ...]:
        """The name of a row, or the names of several."""
        if isinstance(row, slice):
            return tuple(self[each] for each in range(*row.indices(self._total)))
        place = row + self._total if row < 0 else row
        if not 0 <= place < self._total:
            raise IndexError(f"got name {row} of {self._total}")
        group, rest = divmod(place, _STRIDE)
        start = int(self._starts[group])
        last = group + 1 < len(self._starts)
        stop = int(self._starts[group + 1]) if last else len(self._blob)
        return os.fsdecode(bytes(self._blob[start:stop]).split(b"\0", rest + 1)[rest])

    def __iter__(self) -> Iterator[str]:
        """The names in order."""
        for start, stop in zip(
            self._starts, [*self._starts[1:].tolist(), len(self._blob)], strict=True
        ):
            yield from map(os.fsdecode, bytes(self._blob[start:stop]).split(b"\0")[:-1])

    def __eq__(self, other: object) -> bool:
        """Whether these are the same names in the same order."""
        if isinstance(other, Names):
            return self._blob == other._blob
        if isinstance(other, Sequence) and not isinstance(other, str):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # like a list, it can be compared but is no key

    def __repr__(self) -> str:
        """The number of names, and the first two."""
        return f"Names({self._total}: {', '.join(self[:2])}{', ...' if self._total > 2 else ''})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the file's path, so that another process maps it, or else the bytes."""
        if self._path is not None:
            return Names.mapped, (self._path,)
        return Names, (bytes(self._blob),)
