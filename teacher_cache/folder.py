"""Images as files in a folder of class folders."""

import os
from collections.abc import Iterable
from pathlib import Path

from teacher_cache.listing import (
    ImagesError,
    ImageUnavailable,
    Listing,
    is_image,
    listing_of_classes,
)
from teacher_cache.tars import list_class_tars


def list_folder(root: Path) -> Listing:
    """List a folder of class folders, or, where it has none, one of tars, each of one class.

    Images may lie at any depth below their class folder. Hidden folders, hidden files and what is
    no image are passed over; links are followed.

    Raises:
        ImagesError: nothing there, or a class folder without images.
    """
    if not root.is_dir():
        raise ImagesError(
            f"{root}: no such folder; expected a folder of class folders of images, a .tar of "
            "them, hfds/NAME or wds/PATH"
        )
    with os.scandir(root) as found:
        entries = sorted(
            (entry for entry in found if not entry.name.startswith(".")),
            key=lambda entry: os.fsencode(entry.name),
        )
    for entry in entries:
        _require_there(entry.path)
    folders = [entry.name for entry in entries if entry.is_dir()]
    if folders:
        return listing_of_classes(root, {name: list(_image_keys(root, name)) for name in folders})
    tars = [root / entry.name for entry in entries if entry.name.endswith(".tar")]
    if tars:
        return list_class_tars(root, tars)
    raise ImagesError(f"{root} holds no class folders; expected {root}/<class>/<image>.jpg")


def _require_there(path: str) -> None:
    """Refuse a link that leads nowhere: it may be to a folder of images on a mount that is away."""
    try:
        Path(path).stat()
    except OSError as error:
        raise ImageUnavailable.of(path, error) from None


def _unreachable(error: OSError) -> None:
    raise ImageUnavailable.of(str(error.filename), error) from None


def _image_keys(root: Path, name: str) -> Iterable[str]:
    seen = set()
    for folder, below, files in os.walk(root / name, followlinks=True, onerror=_unreachable):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back
            below.clear()
            continue
        seen.add(real)
        prefix = Path(folder).relative_to(root).as_posix()
        for file in files:
            if is_image(file):
                yield f"{prefix}/{file}"
            elif (path := os.path.join(folder, file)) and os.path.islink(path):  # noqa: PTH114, PTH118
                _require_there(path)
