"""What every source of images tells: their names, their classes, and bytes by row.

N images, C classes.
"""

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Protocol, Self

import numpy as np

from teacher_cache.errors import UserError
from teacher_cache.errors import printable as printable

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
)
"""The file names that count as images; everything else in a class folder is passed over."""


class ImagesError(UserError):
    """Images that cannot be used, or that are not those a cache was made from."""


class ImageUnavailable(UserError):
    """Images that cannot be reached now: a mount that is away, a right that is missing, a bad disk.

    That is never taken for an image that does not decode: what is away for a moment is not absent.
    """

    @classmethod
    def of(cls, name: str, error: OSError) -> Self:
        """What the system said of a file or folder."""
        reason = error.strerror or str(error)
        return cls(
            f"{printable(name)}: cannot be reached ({reason}): nothing already done is lost; see "
            "that the images are all there, and run the same command again"
        )


def read_regular_file(path: Path) -> bytes:
    """The bytes of a file; a pipe or device of that name is not even opened for reading.

    Raises:
        ImagesError: no regular file.
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ImagesError(f"{printable(str(path))} is no regular file: take it out of the data")
        return file.read()


class ImageSource(Protocol):
    """Encoded images by row. It is read in forked and spawned workers, so it is picklable."""

    def read(self, row: int) -> bytes:
        """One image's encoded bytes, none for a row without any; OSError where they are away."""
        ...

    def take(self, rows: np.ndarray) -> Self:
        """Some of the images: row i of the result is row `rows[i]` of this one."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """The images of one source, in whatever order it names them."""

    root: Path
    """Where they are, in errors: `root / key` names an image."""
    keys: Sequence[str]
    """[N] unique names."""
    classes: Sequence[str]
    """[C] names of classes, of class folders where there are any."""
    labels: np.ndarray
    """int64 [N] positions in `classes`."""
    class_ids: Mapping[str, int] | None = None
    """The ids that the source itself gives its classes; None: they are numbered in byte order."""
    source: ImageSource | None = None
    """Where the bytes are; None: each image is a file, `root / key`."""


def is_image(name: str) -> bool:
    """Whether a file's name, without its folder, is one of an image that is not hidden."""
    return not name.startswith(".") and PurePath(name).suffix.lower() in EXTENSIONS


def several(names: Sequence[str], noun: str) -> str:
    """Count and name: `3 images (a/1.png, a/2.png, a/3.png)`."""
    shown = ", ".join(printable(name) for name in names[:3])
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} {noun}{'s' if len(names) != 1 else ''} ({shown}{more})"


def listing_of_classes(
    root: Path, found: Mapping[str, Sequence[str]], source: ImageSource | None = None
) -> Listing:
    """A listing out of the keys of each class folder."""
    counts = [len(keys) for keys in found.values()]
    return Listing(
        root,
        [key for keys in found.values() for key in keys],
        list(found),
        np.repeat(np.arange(len(found)), counts),
        source=source,
    )


def split_of(name: str) -> tuple[str, str | None]:
    """NAME and SPLIT of `NAME:SPLIT`."""
    found = re.fullmatch(r"(.+?):(\w[^/]*)", name)  # the split may be a slice: train[:10%]
    return (found[1], found[2]) if found else (name, None)


def choose_split(names: list[str], wanted: str | None, data: str) -> str:
    """The split asked for, or the only one there is.

    Raises:
        ImagesError: no such split, or several to choose from.
    """
    if wanted in names:
        return str(wanted)
    if wanted is None and len(names) == 1:
        return names[0]
    asked = "several splits" if wanted is None else f"no split {wanted!r}"
    raise ImagesError(
        f"{data} has {asked}: pass one of " + ", ".join(f"{data}:{name}" for name in sorted(names))
    )
