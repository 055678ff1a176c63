"""Data sets in WebDataset shards, under timm's name for them: `wds/PATH`.

timm and webdataset read shards from front to back and shuffle them at random, but a cache needs any
row at any time. Shards are plain tars, so their headers are indexed once and images are read by
offset. A test compares images and labels with timm's reader.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from teacher_cache.images.archive import Archive, Extent, archived
from teacher_cache.images.source import (
    EXTENSIONS,
    ImagesError,
    ImageUnavailable,
    Listing,
    choose_split,
    keys_of,
    printable,
    several,
    split_of,
)
from teacher_cache.images.tar_headers import read_contents

INFO_FILES = ("_info.json", "info.json")
"""timm's files that list splits by name, each with its shards and their number of samples."""
_META = re.compile(r"__[^/]*__($|/)")
"""The names of members that belong to no sample, according to webdataset."""


@dataclass(frozen=True, slots=True)
class Shards:
    """The shards of one split."""

    root: Path
    paths: tuple[Path, ...]
    samples: int | None = None
    """How many samples there must be, if an info file states it."""
    label_key: str | None = None
    """The field of each sample's .json that holds the label; None if its .cls does."""


def list_shards(name: str) -> Listing:
    """List wds/PATH[:SPLIT]: a folder of shards, one shard, or a pattern like a-{000..127}.tar.

    A key is the image's name in its shard. If a name is in two shards, each key begins with the
    name of the shard. The names of classes are their numbers.

    Raises:
        ImagesError: there are no shards, a sample has not one image and a label, or the number of
            samples is not the stated one.
    """
    shards = _shards(name)
    archives = tuple(Archive.of(path) for path in shards.paths)
    names: list[tuple[str, str]] = []
    labels: list[int] = []
    places: list[tuple[int, Extent]] = []
    samples = 0
    for number, archive in enumerate(archives):
        found = _samples(archive)
        samples += len(found)
        for sample in found:
            label = _label(archive, sample, shards.label_key)
            # timm, too, leaves out the images whose alternative label is negative
            if label >= 0:
                names.append((archive.path.stem, sample.image))
                labels.append(label)
                places.append((number, sample.members[sample.image]))
    if shards.samples not in (None, samples):
        raise ImagesError(
            f"wds/{name}: its shards hold {samples} samples, {shards.root} states "
            f"{shards.samples}: restore the shards"
        )
    if not names:
        raise ImagesError(
            f"wds/{name} holds no samples; expected members such as 0001.jpg, 0001.cls"
        )
    plain = [image for _, image in names]
    keys = plain if len(set(plain)) == len(plain) else [f"{shard}/{key}" for shard, key in names]
    values, positions = np.unique(np.array(labels, np.int64), return_inverse=True)
    classes = [str(value) for value in values.tolist()]
    ids = {name: int(name) for name in classes}
    named = keys_of(keys, shards.root)
    return Listing(shards.root, named, classes, positions, ids, archived(archives, places))


def _shards(name: str) -> Shards:
    if "://" in name or name.startswith("pipe:"):
        raise ImagesError(
            f"wds/{name}: images are read in any order, so the shards must be local files: copy "
            "or mount them"
        )
    name, split = split_of(name)
    path = Path(name)
    if path.is_dir():
        # lexists: an info file that is a broken link must be an error, and not count as missing
        infos = [path / info for info in INFO_FILES if os.path.lexists(path / info)]
        if infos:
            return _stated_shards(infos[0], split, name)
        paths: Sequence[Path] = _tars_in(path)
    else:
        paths = [Path(each) for each in _expanded(name)]
    if split is not None:
        raise ImagesError(
            f"wds/{name}:{split}: no {path / INFO_FILES[0]} that names splits: pass a pattern, "
            f"such as wds/{path}/{split}-{{000..127}}.tar"
        )
    return Shards(path, _existing(paths, name))


def _tars_in(folder: Path) -> list[Path]:
    try:
        names = os.listdir(folder)  # noqa: PTH208 - glob passes over a folder it cannot list
    except OSError as error:
        raise ImageUnavailable.of(folder, error) from None
    return [folder / n for n in sorted(names) if n.endswith(".tar") and not n.startswith(".")]


def _stated_shards(info: Path, split: str | None, name: str) -> Shards:
    try:
        splits: dict[str, dict[str, Any]] = json.loads(info.read_bytes())["splits"]
        stated = splits[choose_split(list(splits), split, f"wds/{name}")]
        paths = [info.parent / file for file in stated["filenames"]]
        samples = int(stated["num_samples"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ImagesError(
            f"{info}: not what timm writes ({error!r}); expected splits, each with filenames and "
            "num_samples"
        ) from None
    return Shards(info, _existing(paths, name), samples, stated.get("alt_label") or None)


def _existing(paths: Sequence[Path], name: str) -> tuple[Path, ...]:
    if not paths:
        raise ImagesError(f"wds/{name} holds no shards; expected .tar files")
    if absent := [str(path) for path in paths if not path.is_file()]:
        raise ImagesError(f"wds/{name}: {several(absent, 'shard')} not there: restore what is gone")
    return tuple(paths)


def _expanded(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    try:
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise ImagesError(
            f"wds/{pattern}: patterns need the package `webdataset`: pip install webdataset, or "
            "pass the folder of the shards"
        ) from None
    return list(expand_urls(pattern))


@dataclass(frozen=True, slots=True)
class _Sample:
    """The members of one shard whose names are the same up to the first dot."""

    name: str
    members: dict[str, Extent]
    image: str


def _samples(archive: Archive) -> list[_Sample]:
    contents = read_contents(archive)
    if contents.repeated:
        raise ImagesError(
            f"{archive.path} holds {several(contents.repeated, 'name')} twice: write the shard anew"
        )
    grouped: dict[str, dict[str, Extent]] = {}
    for member, extent in contents.files.items():
        folder, _, file = member.rpartition("/")
        stem, dot, _ = file.partition(".")
        if stem and dot and not _META.match(member):
            grouped.setdefault(f"{folder}/{stem}", {})[member] = extent
    return [_sample(archive, name, members) for name, members in grouped.items()]


def _sample(archive: Archive, name: str, members: dict[str, Extent]) -> _Sample:
    images = [member for member in members if f".{_extension(member)}" in EXTENSIONS]
    if len(images) != 1:
        dots = any("." in _extension(member) for member in members)
        hint = "; a sample's name ends at its first dot: rename names with dots" if dots else ""
        raise ImagesError(
            f"{archive.path}: sample {printable(name.lstrip('/'))} has {len(images)} images among "
            f"its {several(list(members), 'member')}; expected one, and a .cls or .json{hint}"
        )
    return _Sample(name, members, images[0])


def _extension(member: str) -> str:
    return member.rpartition("/")[2].partition(".")[2].lower()


def _label(archive: Archive, sample: _Sample, label_key: str | None) -> int:
    by_extension = {_extension(member): extent for member, extent in sample.members.items()}
    name = printable(sample.image)
    wanted = "cls" if label_key is None and "cls" in by_extension else "json"
    if wanted not in by_extension:
        raise ImagesError(
            f"{archive.path}: {name} has no label: expected a .cls or .json beside it"
        )
    extent = by_extension[wanted]
    field = label_key or "label"
    try:
        data = archive.read(extent.offset, extent.size)
    except OSError as error:
        raise ImageUnavailable.of(archive.path, error) from None
    try:
        return int(data.decode("utf-8-sig") if wanted == "cls" else json.loads(data)[field])
    except (ValueError, KeyError, TypeError) as error:
        raise ImagesError(
            f"{archive.path}: the .{wanted} of {name} holds no label ({error!r}): expected a whole "
            "number" + (f" as its {field!r}" if wanted == "json" else "")
        ) from None
