"""A data set of image files in class folders."""

import errno
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from teacher_cache.images.source import (
    ImagesError,
    ImageUnavailable,
    Listing,
    is_image,
    kinds_passed_over,
    listing_of_classes,
    refuse_wrapped,
    require_regular,
)
from teacher_cache.images.tars import list_class_tars


def list_folder(root: Path) -> Listing:
    """List a folder of class folders; if it has none, a folder of tars, each of one class.

    Images may lie at any depth below their class folder. Hidden folders, hidden files and files
    that are no images are passed over and counted; links are followed. The order is that of an
    index: by class and key, compared in bytes.

    Raises:
        ImagesError: there is no such folder, no class folder in it, or folders around these.
        ImageUnavailable: a folder cannot be listed, a link leads nowhere, or a FIFO, socket or
            device has the name of an image.
    """
    if not root.is_dir():
        raise ImagesError(
            f"{root}: no such folder; expected a folder of class folders of images, a .tar of "
            "them, hfds/NAME or wds/PATH"
        )
    visible = [entry for entry in _entries(root) if not entry.name.startswith(".")]
    folders = [entry.name for entry in visible if _is_folder(entry)]
    if folders:
        passed: Counter[str] = Counter()
        found = {name: sorted(_image_keys(root, name, passed), key=os.fsencode) for name in folders}
        refuse_wrapped(root, found)
        outside = sum(is_image(entry.name) for entry in visible)
        return listing_of_classes(
            root, found, passed_over=passed + Counter({"outside class folders": outside})
        )
    tars = [root / entry.name for entry in visible if entry.name.endswith(".tar")]
    if tars:
        return list_class_tars(root, tars)
    raise ImagesError(f"{root} holds no class folders; expected {root}/<class>/<image>.jpg")


def _image_keys(root: Path, name: str, passed: Counter[str]) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()
    below = [name]
    while below:
        folder = below.pop()
        identity = _identity(root / folder)
        if identity in seen:  # a link leads back to a folder that was listed already
            continue
        seen.add(identity)
        for entry in _entries(root / folder):
            key = f"{folder}/{entry.name}"
            if _is_folder(entry):
                below.append(key)
            elif is_image(entry.name):
                _require_file(entry)
                yield key
            else:
                passed.update(kinds_passed_over(entry.name))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder in the byte order of their names."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise ImageUnavailable.of(folder, error) from None


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise ImageUnavailable.of(folder, error) from None
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one; a link that leads nowhere is an error."""
    try:
        if entry.is_dir():
            return True
        if entry.is_symlink():
            Path(entry.path).stat()
    except OSError as error:
        raise ImageUnavailable.of(entry.path, error) from None
    return False


def _require_file(entry: os.DirEntry[str]) -> None:
    try:
        if not entry.is_file():  # also False for a file that has just vanished
            require_regular(Path(entry.path).stat().st_mode, Path(entry.path))
            raise FileNotFoundError(errno.ENOENT, "it vanished while it was listed")
    except OSError as error:
        raise ImageUnavailable.of(entry.path, error) from None
