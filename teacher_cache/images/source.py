"""What all sources of images have in common: names, classes, and encoded bytes by row.

N images, C classes.
"""

import errno
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Protocol, Self

import numpy as np

from teacher_cache.errors import UserError, reason_of
from teacher_cache.errors import printable as printable
from teacher_cache.images.names import Names

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".bmp", ".tif", ".tiff", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
"""Pillow's names for the formats that are decoded. What else lies in a class folder is passed over,
counted and told."""
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test"})
"""Folders around class folders, by the names that data sets give them."""
_OF_DESKTOPS = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
"""Files that file managers leave everywhere: nothing is to be told of them."""


class ImagesError(UserError):
    """The images cannot be used, or are not those that a cache was made from."""


class ImageUnavailable(ImagesError):
    """An image or a folder cannot be read now, which says nothing of what it contains."""

    @classmethod
    def of(cls, path: object, error: OSError) -> Self:
        """The error that a user sees for an OSError."""
        return cls(
            f"{printable(str(path))} cannot be read ({error.strerror or reason_of(error)}): "
            "nothing is lost; mend it, and run the same command again"
        )


class ImageSource(Protocol):
    """Encoded images by row. It is picklable, because forked and spawned workers read from it."""

    def read(self, row: int) -> bytes:
        """The encoded bytes of one image.

        Raises:
            OSError: they cannot be read.
        """
        ...

    def take(self, rows: np.ndarray) -> Self:
        """Some of the images: row i of the result is row `rows[i]` of these."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Listing:
    """The images of one source, in the order in which the source lists them."""

    root: Path
    """Where the images are; errors name an image by `root / key`."""
    keys: Names
    """[N] unique names."""
    classes: Sequence[str]
    """[C] names of the classes, which are the class folders if there are any."""
    labels: np.ndarray
    """int64 [N] positions in `classes`."""
    class_ids: Mapping[str, int] | None = None
    """The ids that the source itself gives its classes; None if it gives none."""
    source: ImageSource | None = None
    """Where the bytes are; None if each image is a file, `root / key`."""
    passed_over: Mapping[str, int] = field(default_factory=dict)
    """Files in class folders that are no images by their names: how many of each kind."""


def is_image(name: str) -> bool:
    """Whether a file name, without its folder, is the name of an image that is not hidden."""
    return not name.startswith(".") and PurePath(name).suffix.lower() in EXTENSIONS


def kinds_passed_over(name: str) -> list[str]:
    """Under what a file is counted that is no image by its name: nothing, or one kind."""
    if name.lower() in _OF_DESKTOPS:
        return []
    if name.startswith("."):
        return ["hidden"]
    return [printable(PurePath(name).suffix.lower())[:16] or "without suffix"]


def refuse_wrapped(root: Path, found: Mapping[str, Iterable[str]]) -> None:
    """Refuse a folder around the class folders, or around each split's: no split is a class.

    Args:
        root: where the folders are.
        found: the keys of each folder's images.

    Raises:
        ImagesError: saying which folder to pass.
    """
    are_splits = len(found) > 1 and _SPLITS.issuperset(map(str.lower, found))
    below = {name.split("/")[1] for keys in found.values() for name in keys if name.count("/") > 1}
    flat = any(name.count("/") == 1 for keys in found.values() for name in keys)
    if are_splits or (len(found) == 1 and not flat and len(below) > 1):
        one = min(found, key=os.fsencode)
        what = "the splits of a data set" if are_splits else "nothing but folders in it"
        raise ImagesError(
            f"{root} holds {several(sorted(found), 'folder')}: that is {what}, expected the folder "
            f"of the class folders: pass one, such as {printable(str(root / one))}"
        )


def keys_of(names: Iterable[str], root: Path) -> Names:
    """The names of images as keys of an index.

    Raises:
        ImagesError: a name holds a NUL byte, or cannot be encoded for this file system.
    """
    try:
        return Names.of(names)
    except ValueError as error:
        raise ImagesError(f"{root}: {error}: rename these images") from None


def read_regular_file(path: Path) -> bytes:
    """The bytes of a file; links are followed.

    Raises:
        OSError: the file cannot be read, or is no regular file.
    """
    with open(open_regular_file(path), "rb", buffering=0) as file:
        return file.readall()


def open_regular_file(path: Path) -> int:
    """Open a file for reading and return its descriptor.

    Raises:
        OSError: the file cannot be opened, or is no regular file.
    """
    # Without O_NONBLOCK, opening a FIFO would wait for a process that writes into it.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    # A file server may have a lease on the file, which it gives back if it has the time: so this
    # second try waits.
    except BlockingIOError:
        require_regular(path.stat().st_mode, path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        require_regular(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def require_regular(mode: int, path: Path) -> None:
    """Refuse a FIFO, socket, device or folder, by its mode.

    Raises:
        OSError: the file is no regular file.
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
    root: Path,
    found: Mapping[str, Sequence[str]],
    source: ImageSource | None = None,
    passed_over: Mapping[str, int] | None = None,
) -> Listing:
    """A listing from the keys of each class folder, in the order in which both are given."""
    counts = [len(keys) for keys in found.values()]
    return Listing(
        root,
        keys_of((key for keys in found.values() for key in keys), root),
        list(found),
        np.repeat(np.arange(len(found)), counts),
        source=source,
        passed_over=passed_over or {},
    )


def split_of(name: str) -> tuple[str, str | None]:
    """Split `NAME:SPLIT` into NAME and SPLIT, which is None if it is not given."""
    found = re.fullmatch(r"(.+?):(\w[^/]*)", name)  # the split may be a slice: train[:10%]
    return (found[1], found[2]) if found else (name, None)


def choose_split(names: list[str], wanted: str | None, data: str) -> str:
    """The split that was asked for, or else the only one that there is.

    Raises:
        ImagesError: there is no such split, or none was asked for and there are several.
    """
    if wanted in names:
        return str(wanted)
    if wanted is None and len(names) == 1:
        return names[0]
    asked = "several splits" if wanted is None else f"no split {wanted!r}"
    raise ImagesError(
        f"{data} has {asked}: pass one of " + ", ".join(f"{data}:{name}" for name in sorted(names))
    )
