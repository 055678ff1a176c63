"""Images inside a file, read by offset with `pread`: safe in any process, at the same time."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from teacher_cache.images.source import (
    ImagesError,
    ImageUnavailable,
    open_regular_file,
    require_regular,
)


@dataclass(frozen=True, slots=True)
class Archive:
    """A tar file as it was when its headers were read."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """The file as it is now.

        Raises:
            ImageUnavailable: it is not there, or no regular file.
        """
        try:
            status = path.stat()
            require_regular(status.st_mode, path)
        except OSError as error:
            raise ImageUnavailable.of(path, error) from None
        return cls(path, status.st_size, status.st_mtime_ns)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file.

        Raises:
            ImagesError: the file is not the one whose headers were read.
            OSError: it cannot be read.
        """
        # opened each time: 10 us of an image's 5 ms, no descriptors to share or to run out of
        descriptor = open_regular_file(self.path)
        try:
            status = os.fstat(descriptor)
            if (status.st_size, status.st_mtime_ns) != (self.size, self.mtime_ns):
                raise ImagesError(
                    f"{self.path} was changed or replaced since this command listed it: leave it "
                    "alone while it is read, and run the command again"
                )
            data: bytes = os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)
        if len(data) != size:
            raise OSError(errno.EIO, f"got {len(data)} of {size} bytes", str(self.path))
        return data


@dataclass(frozen=True, slots=True, eq=False)
class ArchivedImages:
    """Images that lie uncompressed inside archives. N images."""

    archives: tuple[Archive, ...]
    numbers: np.ndarray
    """int32 [N] which archive."""
    offsets: np.ndarray
    """int64 [N] bytes."""
    sizes: np.ndarray
    """int64 [N] bytes."""

    def read(self, row: int) -> bytes:
        """One image's encoded bytes."""
        archive: Archive = self.archives[int(self.numbers[row])]
        return archive.read(int(self.offsets[row]), int(self.sizes[row]))

    def take(self, rows: np.ndarray) -> Self:
        """Some of the images."""
        return type(self)(self.archives, self.numbers[rows], self.offsets[rows], self.sizes[rows])


@dataclass(frozen=True, slots=True)
class Extent:
    """Where some bytes lie in a file."""

    offset: int
    size: int


def archived(archives: tuple[Archive, ...], places: list[tuple[int, Extent]]) -> ArchivedImages:
    """Images from (number of the archive, extent) of each."""
    table = np.array([(n, e.offset, e.size) for n, e in places], np.int64).reshape(-1, 3)
    return ArchivedImages(archives, table[:, 0].astype(np.int32), table[:, 1], table[:, 2])
