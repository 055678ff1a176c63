"""Images inside an archive are read by offset with `pread`, by any number of processes at once."""

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
        """Note the size and time of a file as it is now.

        Raises:
            ImageUnavailable: the file is missing, or is no regular file.
        """
        try:
            status = path.stat()
            require_regular(status.st_mode, path)
        except OSError as error:
            raise ImageUnavailable.of(path, error) from None
        return cls(path, status.st_size, status.st_mtime_ns)

    def read(self, offset: int, size: int) -> bytes:
        """Read `size` bytes from `offset` on.

        Raises:
            ImagesError: the file has changed since its headers were read.
            OSError: the file cannot be read.
        """
        # The file is opened for each image, which takes 10 us of an image's 5 ms: so there are no
        # descriptors to share with workers, or to run out of.
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
    """N images that lie uncompressed inside archives."""

    archives: tuple[Archive, ...]
    numbers: np.ndarray
    """int32 [N] position in `archives` of each image's archive."""
    offsets: np.ndarray
    """int64 [N] first byte of each image in its archive."""
    sizes: np.ndarray
    """int64 [N] bytes of each image."""

    def read(self, row: int) -> bytes:
        """The encoded bytes of one image."""
        archive: Archive = self.archives[int(self.numbers[row])]
        return archive.read(int(self.offsets[row]), int(self.sizes[row]))

    def take(self, rows: np.ndarray) -> Self:
        """Some of the images: row i of the result is row `rows[i]` of these."""
        return type(self)(self.archives, self.numbers[rows], self.offsets[rows], self.sizes[rows])


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of bytes in a file."""

    offset: int
    size: int


def archived(archives: tuple[Archive, ...], places: list[tuple[int, Extent]]) -> ArchivedImages:
    """Images, each of which lies at a pair of (number of the archive, extent in it)."""
    table = np.array([(n, e.offset, e.size) for n, e in places], np.int64).reshape(-1, 3)
    return ArchivedImages(archives, table[:, 0].astype(np.int32), table[:, 1], table[:, 2])
