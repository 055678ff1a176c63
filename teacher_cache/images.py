"""The image index: the ordered list of images that every row number refers to."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from teacher_cache.errors import UserError

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
)
"""The file names that count as images; everything else in a class folder is passed over."""


class ImagesError(UserError):
    """A data folder that cannot be used, or that is not the one a cache was made from."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageIndex:
    """Images in a fixed order; row = position.

    Shapes: N images, C classes.
    """

    root: Path
    keys: tuple[str, ...]
    """[N] paths relative to `root`, with `/`, decoded by `os.fsdecode`."""
    labels: np.ndarray
    """[N] int64 class ids."""
    class_ids: Mapping[str, int]
    """From class folder to class id."""

    def __len__(self) -> int:
        """N, the number of images."""
        return len(self.keys)

    @property
    def class_count(self) -> int:
        """The smallest number of classes that holds every class id."""
        return max(self.class_ids.values()) + 1

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of keys, labels and classes, wherever the folder lies."""
        sha = hashlib.sha256()
        for name, class_id in sorted(self.class_ids.items(), key=lambda item: os.fsencode(item[0])):
            sha.update(os.fsencode(name) + b"\0%d\0" % class_id)
        sha.update(b"\0".join(map(os.fsencode, self.keys)))
        sha.update(self.labels.astype("<i8").tobytes())
        return sha.hexdigest()

    def read(self, row: int) -> bytes:
        """The encoded bytes of one image; OSError where the file cannot be read."""
        return (self.root / self.keys[row]).read_bytes()


def index_folder(root: Path, *, class_ids: Mapping[str, int] | None = None) -> ImageIndex:
    """List a folder of class folders, in the byte order of the paths.

    Args:
        root: its sub-folders are the classes; images may lie at any depth below them.
        class_ids: from class folder to class id; None numbers the folders in byte order from 0.

    Raises:
        ImagesError: a missing or empty folder, one without class folders or images, a class folder
            without images, or one that `class_ids` does not name.
    """
    names = _class_folders(root)
    if class_ids is None:
        class_ids = {name: class_id for class_id, name in enumerate(names)}
    if unknown := [name for name in names if name not in class_ids]:
        raise ImagesError(
            f"{root} has {_several(unknown, 'class folder')} that the class list of "
            f"{len(class_ids)} does not name: use the classes of the training set, "
            "or a class map that names every folder"
        )
    keys: list[str] = []
    labels: list[int] = []
    for name in names:
        found = sorted(_image_keys(root, name), key=os.fsencode)
        if not found:
            raise ImagesError(
                f"class folder {root / name} holds no image "
                f"(expected {', '.join(sorted(EXTENSIONS))}): fill it or remove it"
            )
        keys += found
        labels += [class_ids[name]] * len(found)
    return ImageIndex(root, tuple(keys), np.array(labels, np.int64), dict(class_ids))


def read_class_map(path: Path) -> dict[str, int]:
    """Read a JSON object from class folder to class id.

    Raises:
        ImagesError: not a JSON object of unique, non-negative whole numbers.
    """
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ImagesError(f"class map {path}: cannot be read as JSON: {error}") from None
    if (
        not isinstance(document, dict)
        or not document
        or not all(type(value) is int and value >= 0 for value in document.values())
        or len(set(document.values())) != len(document)
    ):
        raise ImagesError(
            f"class map {path}: expected a JSON object from class folder to class id "
            '(whole numbers from 0, each once), such as {"n01440764": 0}'
        )
    return document


def rebase(index: ImageIndex, root: Path) -> ImageIndex:
    """The same rows over another copy of the data set, matched by key: moved or reordered is fine.

    Raises:
        ImagesError: counting and naming the images that `root` lacks, has beyond the index, or
            holds under another class.
    """
    here = index_folder(root, class_ids=_ids_for(index, root))
    missing = _difference(index.keys, here.keys)
    extra = _difference(here.keys, index.keys)
    if missing or extra:
        parts = [f"lacks {_several(missing, 'image')}"] if missing else []
        parts += [f"has {_several(extra, 'image')} beyond it"] if extra else []
        raise ImagesError(
            f"{root} is not the data set of this cache ({len(index)} images): it "
            + " and ".join(parts)
            + ": point --data at the data set that the cache was filled from, or fill a new cache"
        )
    return ImageIndex(root, index.keys, index.labels, index.class_ids)


def _ids_for(index: ImageIndex, root: Path) -> Mapping[str, int]:
    """The index's class ids; folders of `root` that it does not know surface as extra images."""
    unknown = [name for name in _class_folders(root) if name not in index.class_ids]
    return {**index.class_ids, **{name: index.class_count for name in unknown}}


def _difference(keys: Iterable[str], others: Iterable[str]) -> list[str]:
    return sorted(set(keys).difference(others), key=os.fsencode)


def _class_folders(root: Path) -> list[str]:
    if not root.is_dir():
        raise ImagesError(f"{root}: no such folder; expected a folder of class folders of images")
    with os.scandir(root) as entries:
        folders = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    if not folders:
        raise ImagesError(f"{root} holds no class folders; expected {root}/<class>/<image>.jpg")
    return sorted(folders, key=os.fsencode)


def _image_keys(root: Path, name: str) -> Iterable[str]:
    seen = set()
    for folder, below, files in os.walk(root / name, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back
            below.clear()
            continue
        seen.add(real)
        prefix = Path(folder).relative_to(root).as_posix()
        for file in files:
            if not file.startswith(".") and PurePath(file).suffix.lower() in EXTENSIONS:
                yield f"{prefix}/{file}"


def _several(names: list[str], noun: str) -> str:
    """Count and name: `3 images (a/1.png, a/2.png, ...)`."""
    shown = ", ".join(name.encode("utf-8", "backslashreplace").decode() for name in names[:3])
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} {noun}{'s' if len(names) != 1 else ''} ({shown}{more})"
