"""What every source of images tells: their names, their classes, and bytes by row.

N images, C classes.
"""

import errno
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Protocol, Self

import numpy as np

from teacher_cache.errors import UserError
from teacher_cache.errors import printable as printable
from teacher_cache.images.names import Names

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
)
"""The file names that count as images; everything else in a class folder is passed over."""


class ImagesError(UserError):
    """Images that cannot be used, or that are not those a cache was made from."""


class ImageUnavailable(ImagesError):
    """An image or a folder that is named but cannot be read now; it says nothing of its bytes."""

    @classmethod
    def of(cls, path: object, error: OSError) -> Self:
        """What a user reads of an OSError."""
        return cls(
            f"{printable(str(path))} cannot be read ({error.strerror or error}): nothing is lost; "
            "mend it, or remove it if it is meant to be gone, and run the same command again"
        )


class ImageSource(Protocol):
    """Encoded images by row. It is read in forked and spawned workers, so it is picklable."""

    def read(self, row: int) -> bytes:
        """One image's encoded bytes; OSError where they cannot be read."""
        ...

    def take(self, rows: np.ndarray) -> Self:
        """Some of the images: row i of the result is row `rows[i]` of this one."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """The images of one source, in whatever order it names them."""

    root: Path
    """Where they are, in errors: `root / key` names an image."""
    keys: Names
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


def keys_of(names: Iterable[str], root: Path) -> Names:
    """Names of images as keys.

    Raises:
        ImagesError: a name that is empty, holds a NUL, or has no bytes in this file system.
    """
    try:
        return Names.of(names)
    except ValueError as error:
        raise ImagesError(f"{root}: {error}: rename these images") from None


def read_regular_file(path: Path) -> bytes:
    """A file's bytes, links followed.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    with open(open_regular_file(path), "rb", buffering=0) as file:
        return file.readall()


def open_regular_file(path: Path) -> int:
    """A descriptor to read from; opening a FIFO in the ordinary way would wait for a writer.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except BlockingIOError:  # a file server holds a lease on it, and gives it back when asked
        require_regular(path.stat().st_mode, path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        require_regular(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def require_regular(mode: int, path: Path) -> None:
    """Refuse a FIFO, socket, device or folder.

    Raises:
        OSError: it is one of these.
    """
    if not stat.S_ISREG(mode):
        kind = {"p": "a FIFO", "s": "a socket", "d": "a folder"}.get(stat.filemode(mode)[0])
        raise OSError(errno.EINVAL, f"it is {kind or 'a device'}, not a regular file", str(path))


def several(names: Sequence[str], noun: str) -> str:
    """Count and name: `3 images (a/1.png, a/2.png, a/3.png)`."""
    shown = ", ".join(printable(name) for name in names[:3])
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} {noun}{'s' if len(names) != 1 else ''} ({shown}{more})"


def listing_of_classes(
    root: Path, found: Mapping[str, Sequence[str]], source: ImageSource | None = None
) -> Listing:
    """A listing out of the keys of each class folder, in the order of both."""
    counts = [len(keys) for keys in found.values()]
    return Listing(
        root,
        keys_of((key for keys in found.values() for key in keys), root),
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
