"""Data sets in tar files: one tar of class folders, or one tar for each class.

A key is the path that the image would have if the tars were unpacked where they are. So a cache
that was filled from a folder can be replayed from a tar of it, and the reverse.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from teacher_cache.images.archive import Archive, Extent, archived
from teacher_cache.images.source import (
    ImagesError,
    Listing,
    is_image,
    kinds_passed_over,
    listing_of_classes,
    printable,
    refuse_wrapped,
    several,
)
from teacher_cache.images.tar_headers import Contents, read_contents

ArchivedFile = tuple[int, Extent]
"""The number of an archive, and the image's extent in it."""


def list_tar(path: Path, inner: str = "") -> Listing:
    """List a tar of class folders, or a tar of one tar for each class, as ImageNet's own is.

    Args:
        path: the tar, which must not be compressed.
        inner: the folder inside it that holds the class folders; "" for its top.

    Raises:
        ImagesError: the tar has no such folder or no class folders; also as in `read_contents`.
    """
    archive = Archive.of(path)
    contents = read_contents(archive)
    root = path / inner
    if inner:
        contents = _below(contents, inner, root)
    passed: Counter[str] = Counter()
    if found := _classes(contents, passed):
        refuse_wrapped(root, found)
        return _listing(root, (archive,), {name: _at(0, f) for name, f in found.items()}, passed)
    # Only tars at the top are classes. They are not unpacked: images are read by their offset in
    # the outer tar.
    tars = {
        name.removesuffix(".tar"): extent
        for name, extent in contents.files.items()
        if name.endswith(".tar") and "/" not in name and not name.startswith(".")
    }
    if tars:
        members = {
            name: _at(
                0,
                _class_members(root / f"{name}.tar", name, read_contents(archive, extent), passed),
            )
            for name, extent in tars.items()
        }
        return _listing(root, (archive,), members, passed)
    _refuse_shards(root, contents)
    raise ImagesError(f"{root} holds no class folders; expected members <class>/<image>.jpg")


def list_class_tars(root: Path, paths: list[Path]) -> Listing:
    """List a folder of tars, each of which contains the images of the class that it is named after.

    Raises:
        ImagesError: a tar contains folders; also as in `read_contents`.
    """
    archives = tuple(Archive.of(path) for path in paths)
    passed: Counter[str] = Counter()
    members = {
        archive.path.stem: _at(
            number, _class_members(archive.path, archive.path.stem, read_contents(archive), passed)
        )
        for number, archive in enumerate(archives)
    }
    return _listing(root, archives, members, passed)


def _listing(
    root: Path,
    archives: tuple[Archive, ...],
    members: Mapping[str, Mapping[str, ArchivedFile]],
    passed: Counter[str],
) -> Listing:
    members = {name: members[name] for name in sorted(members, key=os.fsencode)}
    places = [place for of_class in members.values() for place in of_class.values()]
    keys = {name: list(of_class) for name, of_class in members.items()}
    return listing_of_classes(root, keys, archived(archives, places), passed)


def _at(number: int, files: Mapping[str, Extent]) -> dict[str, ArchivedFile]:
    """The files of one archive in the order of an index: by key, compared in bytes."""
    names = sorted(files, key=os.fsencode)
    return {name: (number, files[name]) for name in names}


def _below(contents: Contents, inner: str, root: Path) -> Contents:
    prefix = inner.strip("/") + "/"

    def inside(names: Iterable[str]) -> list[str]:
        return [name for name in names if name.startswith(prefix)]

    files = {name.removeprefix(prefix): contents.files[name] for name in inside(contents.files)}
    folders = frozenset(name.removeprefix(prefix) for name in inside(contents.folders))
    if not files:
        tops = sorted({name.partition("/")[0] for name in contents.files if "/" in name})
        raise ImagesError(
            f"{root}: the archive has no such folder; it holds {several(tops, 'folder')}"
        )
    return Contents(files, folders)


def _classes(contents: Contents, passed: Counter[str]) -> dict[str, dict[str, Extent]]:
    """Class folder -> its images by name; empty if there are no folders."""
    found: dict[str, dict[str, Extent]] = {}
    # A class folder that has a header but no images must be known, to be refused.
    for name in contents.folders:
        if top := name.partition("/")[0]:
            found.setdefault(top, {})
    for name, extent in contents.files.items():
        top, slash, rest = name.partition("/")
        if slash:
            found.setdefault(top, {}).update(_images({rest: extent}, passed, f"{top}/"))
        elif is_image(name):
            passed["outside class folders"] += 1
    return {name: files for name, files in found.items() if not name.startswith(".")}


def _images(files: Mapping[str, Extent], passed: Counter[str], prefix: str) -> dict[str, Extent]:
    """The images, with the prefix before their names; the rest is counted."""
    found = {}
    for name, extent in files.items():
        if is_image(name.rpartition("/")[2]):
            found[prefix + name] = extent
        else:
            passed.update(kinds_passed_over(name.rpartition("/")[2]))
    return found


def _class_members(
    path: Path, name: str, contents: Contents, passed: Counter[str]
) -> dict[str, Extent]:
    """The images of one class's tar, by key.

    If all of them lie in a folder named after the class, as in some tars, that folder is left out.
    """
    _refuse_shards(path, contents)
    images = _images(contents.files, passed, "")
    if images and all(member.startswith(f"{name}/") for member in images):
        images = {member.removeprefix(f"{name}/"): extent for member, extent in images.items()}
    if images and all("/" in member for member in images):
        first = next(iter(images))
        raise ImagesError(
            f"{path} holds folders ({printable(first)}); expected one tar a class, with the "
            "class's images in it: unpack the tars into class folders, or pack these into one tar"
        )
    return {f"{name}/{member}": extent for member, extent in images.items()}


def _refuse_shards(path: Path, contents: Contents) -> None:
    if any(name.endswith(".cls") for name in contents.files):
        raise ImagesError(
            f"{path} holds .cls members, as WebDataset shards do: pass wds/PATH, with the folder "
            "of the shards, one of them, or a pattern such as wds/DIR/train-{000..127}.tar"
        )
