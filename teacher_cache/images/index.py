"""The image index: the ordered list of images that every row number refers to.

The modules folder, tars, hugging_face and webdataset list what --data may name. The order of rows,
the numbers of classes and the matching by key are the same for all of them, and are defined here.
"""

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np

from teacher_cache.images.folder import list_folder
from teacher_cache.images.hugging_face import list_dataset
from teacher_cache.images.names import Names
from teacher_cache.images.source import (
    EXTENSIONS,
    ImageSource,
    ImageUnavailable,
    Listing,
    is_image,
    printable,
    read_regular_file,
    several,
    split_of,
)
from teacher_cache.images.source import ImagesError as ImagesError
from teacher_cache.images.spelling import spelling_remark, twins_among
from teacher_cache.images.tars import list_tar
from teacher_cache.images.webdataset import list_shards
from teacher_cache.local_path import local_path

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class ImageIndex:
    """N images of C classes in a fixed order; a row is a position in it."""

    root: Path
    keys: Names
    """[N] names: paths below `root`, with `/` between their parts, decoded by `os.fsdecode`."""
    labels: np.ndarray
    """[N] int64 class ids."""
    class_ids: Mapping[str, int]
    """From class folder to class id."""
    source: ImageSource | None = None
    """Where the bytes are; None if each image is a file, `root / key`."""

    def __post_init__(self) -> None:
        """Move the names into one block of memory, whatever sequence they come in."""
        object.__setattr__(self, "keys", Names.of(self.keys))

    def __len__(self) -> int:
        """N, the number of images."""
        return len(self.keys)

    @property
    def class_count(self) -> int:
        """The smallest number of classes that makes every class id valid: the highest id + 1."""
        return max(self.class_ids.values()) + 1

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of keys, labels and classes; the root is not in it."""
        classes = sorted(self.class_ids.items(), key=lambda item: os.fsencode(item[0]))
        listed = b"".join(os.fsencode(name) + b"\0%d\0" % class_id for name, class_id in classes)
        sha = hashlib.sha256(b"retort/index/2\0")
        labels = np.ascontiguousarray(self.labels, "<i8").data.cast("B")
        for part in (memoryview(listed), self.keys.blob, labels):
            # the lengths keep two different sets of parts from giving the same bytes
            sha.update(b"%d\0" % len(part))
            sha.update(part)
        return sha.hexdigest()

    def read(self, row: int) -> bytes:
        """The encoded bytes of one image.

        Raises:
            ImageUnavailable: the file cannot be read, or is no regular file.
            ImagesError: the archive has changed since it was listed.
        """
        try:
            if self.source is not None:
                return self.source.read(row)
            return read_regular_file(self.root / self.keys[row])
        except OSError as error:
            raise ImageUnavailable.of(self.root / self.keys[row], error) from None

    def name_of(self, row: int) -> str:
        """The name of a row's image in errors."""
        return printable(str(self.root / self.keys[row]))

    def take(self, rows: np.ndarray) -> Self:
        """Some of the rows [M], in that order."""
        return replace(
            self,
            keys=self.keys.take(rows),
            labels=self.labels[rows],
            source=self.source and self.source.take(rows),
        )


def natural_order(names: Iterable[str]) -> list[str]:
    """Names in timm's order of class folders: without regard to case, numbers by their value."""

    def key(name: str) -> list[tuple[int, int | str]]:
        parts = re.split(r"(\d+)", name.lower())
        return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]

    return sorted(names, key=lambda name: (key(name), os.fsencode(name)))


def require_clear_order(index: ImageIndex) -> None:
    """Refuse class folders to which timm and torchvision give different class ids.

    A trained teacher was trained with one of the two, and nothing says with which.

    Raises:
        ImagesError: the orders differ; the message shows both.
    """
    by_bytes = sorted(index.class_ids, key=os.fsencode)
    by_timm = natural_order(index.class_ids)
    if by_bytes != by_timm:
        at = next(
            n for n, pair in enumerate(zip(by_bytes, by_timm, strict=True)) if len({*pair}) > 1
        )
        orders = [", ".join(map(printable, names[at : at + 3])) for names in (by_bytes, by_timm)]
        raise ImagesError(
            f"the class folders have two orders: from class {at} on, {orders[0]} in the order of "
            f"bytes (torchvision's), {orders[1]} in timm's: set images.class_order to the one that "
            'the teacher was trained with ("bytes" or "timm"), or name a file by images.class_map'
        )


def index_images(
    data: Path | str,
    *,
    class_ids: Mapping[str, int] | None = None,
    class_order: str | None = None,
) -> ImageIndex:
    """List the images that --data names, ordered by class and then by key, both in byte order.

    Args:
        data: a folder of class folders, or of one tar a class; a tar of either, or a folder inside
            one (`images.tar/train`); `hfds/NAME[:SPLIT]`; `wds/PATH[:SPLIT]`.
        class_ids: from class folder to class id. None takes the ids of the source itself; if it has
            none, the folders are numbered from 0.
        class_order: "timm" numbers the folders in timm's natural order, anything else in byte
        order.
            Rows are in byte order in any case.

    Raises:
        ImagesError: the data set cannot be used, or has a class that `class_ids` does not name.
        OSError: the data set cannot be read.
    """
    listing = list_images(data)
    used = {listing.classes[number] for number in np.unique(listing.labels).tolist()}
    names = sorted(used if listing.class_ids else listing.classes, key=os.fsencode)
    if class_ids is None:
        ordered = natural_order(names) if class_order == "timm" else names
        class_ids = listing.class_ids or {name: number for number, name in enumerate(ordered)}
    if unknown := [name for name in names if name not in class_ids]:
        raise ImagesError(
            f"{listing.root} has {several(unknown, 'class folder')} that the class list of "
            f"{len(class_ids)} does not name{spelling_remark(unknown, class_ids)}: use the "
            "classes of the training set, or a class map that names every folder"
        )
    _require_images(listing, used)
    ids = np.array([class_ids.get(name, -1) for name in listing.classes], np.int64)
    order, keys = in_order(listing)
    return ImageIndex(
        listing.root,
        keys,
        ids[listing.labels[order]],
        dict(class_ids),
        listing.source and listing.source.take(order),
    )


def list_images(data: Path | str) -> Listing:
    """List the images that --data names, in the source's own order.

    Raises:
        ImagesError, OSError: as in `index_images`.
    """
    kind, _, name = str(data).partition("/")  # `hfds/` and `wds/` are timm's names of its readers
    readers = {"hfds": list_dataset, "wds": list_shards}
    reader = readers.get(kind.lower())
    if reader and name:
        if name.startswith("~"):
            name = str(local_path(name))
        _require_no_folder(str(data), split_of(name)[0])
        listing = reader(name)
    else:
        listing = _list_path(local_path(data))
    _tell_what_is_odd(listing)
    if len(set(listing.keys)) < len(listing.keys):
        seen: set[str] = set()
        twice = [key for key in listing.keys if key in seen or seen.add(key)]  # type: ignore[func-returns-value]
        raise ImagesError(f"{listing.root} names {several(twice, 'image')} twice: rename them")
    return listing


def _require_no_folder(data: str, name: str) -> None:
    """Refuse a folder here whose name is read as that of something else."""
    if Path(data).exists() and not Path(name).exists():
        kind = data.partition("/")[0]
        raise ImagesError(
            f"{printable(data)} is a folder here, but {kind}/NAME stands for another kind of data: "
            f"write ./{printable(data)} for the folder"
        )


def _tell_what_is_odd(listing: Listing) -> None:
    """Files that nobody may have meant to be left out, and classes that look like one."""
    if kinds := Counter(listing.passed_over).most_common():
        _log.warning(
            "%s: %d files that are no images by their names were passed over (%s%s)",
            printable(str(listing.root)),
            sum(listing.passed_over.values()),
            ", ".join(f"{count} {kind}" for kind, count in kinds[:6]),
            ", ..." if len(kinds) > 6 else "",
        )
    if remark := twins_among(listing.classes):
        _log.warning("%s: two classes, %s", printable(str(listing.root)), remark)


def require_same_numbers(index: ImageIndex, asked: ImageIndex) -> None:
    """Refuse class folders that have other ids in a cache than in the user's recipe.

    The labels would be wrong, although every record is the teacher's.

    Args:
        index: the index of the cache.
        asked: the index of the same folders according to the recipe.

    Raises:
        ImagesError: an id differs; the message names the first such folder with both ids.
    """
    theirs = asked.class_ids
    differing = [name for name, own in index.class_ids.items() if theirs.get(name, own) != own]
    if differing:
        name = min(differing, key=os.fsencode)
        raise ImagesError(
            f"the cache numbers {several(differing, 'class folder')} otherwise than the recipe: "
            f"{printable(name)} is class {index.class_ids[name]} in the cache and class "
            f"{theirs[name]} by the recipe: use the images.class_map or images.class_order that "
            "the cache was filled with, or fill a new cache"
        )


def require_outside(index: ImageIndex, out: Path) -> None:
    """Refuse a folder for results that the next listing of the images would take for a class.

    Args:
        index: the images; only if they lie in a folder can anything be written among them.
        out: the folder that a job will write into.

    Raises:
        ImagesError: `out` lies in the folder of class folders, but in no class folder.
    """
    data, place = index.root.resolve(), out.resolve()
    if index.source is not None or data not in place.parents:
        return
    top = place.relative_to(data).parts[0]
    if top not in index.class_ids and not top.startswith("."):
        raise ImagesError(
            f"{printable(str(out))} lies inside the data folder {printable(str(index.root))}, "
            f"where {printable(top)} would count as a class folder from then on: choose an --out "
            "outside it"
        )


def read_class_map(path: Path) -> dict[str, int]:
    """Read a JSON object from class folder to class id.

    Raises:
        ImagesError: the file is no JSON object of unique, non-negative whole numbers.
    """
    try:
        document = json.loads(path.read_bytes())  # it knows a byte-order mark
    except (OSError, ValueError, RecursionError) as error:
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


def allowed_unreadable(count: int, share: float) -> int:
    """How many of `count` images may be unreadable: a share of them, and at least one."""
    return max(1, int(share * count))


def rebase(index: ImageIndex, data: Path | str) -> ImageIndex:
    """The same rows, with the bytes of another copy of the data set, which is matched by key.

    The copy may lie elsewhere and list its images in another order.

    Raises:
        ImagesError: `data` lacks images of the index, has others, or has some in another class; the
            message says how many, and names the first.
        OSError: `data` cannot be read.
    """
    listing = list_images(data)
    _require_images(listing, {listing.classes[label] for label in np.unique(listing.labels)})
    order, keys = in_order(listing)
    here = order if keys == index.keys else _matched(index, listing)
    _require_same_labels(index, listing, here)
    source = listing.source and listing.source.take(here)
    return replace(index, root=listing.root, source=source)


def _matched(index: ImageIndex, listing: Listing) -> np.ndarray:
    """int64 [N] the listing's rows in the order of the index, found by their keys.

    The orders differ if the two name their classes differently.
    """
    rows = {key: row for row, key in enumerate(listing.keys)}
    missing = _difference(index.keys, rows)
    extra = _difference(rows, index.keys)
    if missing or extra:
        parts = [f"lacks {several(missing, 'image')}"] if missing else []
        parts += [f"has {several(extra, 'image')} beyond it"] if extra else []
        raise ImagesError(
            f"{listing.root} is not the data set of this cache ({len(index)} images): it "
            + " and ".join(parts)
            + spelling_remark(missing, extra)
            + ": point --data at the data set that the cache was filled from, or fill a new cache"
        )
    return np.array([rows[key] for key in index.keys], np.int64)


def _require_same_labels(index: ImageIndex, listing: Listing, here: np.ndarray) -> None:
    own = listing.class_ids or {}
    ids = [index.class_ids.get(name, own.get(name, -1)) for name in listing.classes]
    differing = np.array(ids, np.int64)[listing.labels[here]] != index.labels
    if differing.any():
        wrong = [index.keys[row] for row in np.flatnonzero(differing).tolist()]
        raise ImagesError(
            f"{listing.root} holds {several(wrong, 'image')} under another class than the cache: "
            "point --data at the data set that the cache was filled from, or fill a new cache"
        )


def _list_path(path: Path) -> Listing:
    """A folder, a tar, or a folder inside a tar."""
    for tar in (path, *path.parents):
        if tar.is_file():
            if is_image(tar.name):
                raise ImagesError(
                    f"{tar} is an image, expected a folder of class folders, or a tar of them: "
                    f"pass the folder that holds {tar.parent.name}/"
                )
            return list_tar(tar, path.relative_to(tar).as_posix() if tar != path else "")
    return list_folder(path)


def _require_images(listing: Listing, used: Collection[str]) -> None:
    empty = [name for name in listing.classes if name not in used]
    if empty and listing.class_ids is None:
        raise ImagesError(
            f"class folder {printable(str(listing.root / empty[0]))} holds no image "
            f"(expected {', '.join(sorted(EXTENSIONS))}): put images into it, or move it elsewhere"
        )


def in_order(listing: Listing) -> tuple[np.ndarray, Names]:
    """int64 [N] the listing's rows by class and key in byte order, and the keys in that order."""
    classes = [os.fsencode(name) for name in listing.classes]
    ranks = np.empty(len(classes), np.int64)
    ranks[sorted(range(len(classes)), key=classes.__getitem__)] = np.arange(len(classes))
    labels = ranks[listing.labels]
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1)).tolist()
    keys = Names.of(listing.keys).encoded()
    # Each class is sorted by itself: many short lists take several times less time than a long one.
    for start, stop in zip(starts, [*starts[1:], len(keys)], strict=True):
        order[start:stop] = sorted(order[start:stop].tolist(), key=keys.__getitem__)
    return order, Names(b"\0".join([*map(keys.__getitem__, order.tolist()), b""]))


def _difference(keys: Iterable[str], others: Iterable[str]) -> list[str]:
    return sorted(set(keys).difference(others), key=os.fsencode)
