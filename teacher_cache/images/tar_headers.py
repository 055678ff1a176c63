"""One pass over the headers of a tar tells which files it contains, and where.

Python's tarfile reads the headers (ustar, GNU, pax). This module adds what tarfile does not do: it
refuses names that lead out of the archive, resolves links to the bytes that they stand for, and
finds a cut or damage that tarfile takes for the end.
"""

import io
import os
import sys
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from teacher_cache.images.archive import Archive, Extent
from teacher_cache.images.source import (
    ImagesError,
    ImageUnavailable,
    is_image,
    open_regular_file,
    printable,
)

_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ\x00": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"PK\x03\x04": "unzip",
}
"""The first bytes of compressed files, and the command that unpacks each kind."""
_LINKS_AT_MOST = 40  # Linux follows as many links to links


@dataclass(frozen=True, slots=True)
class Contents:
    """The files and folders that a tar would create in an empty folder, by normalised names."""

    files: Mapping[str, Extent]
    folders: frozenset[str]
    """Folders that have a header of their own; some tars have one for every folder, others none."""
    repeated: tuple[str, ...] = ()
    """Names of files that are stored more than once; the last one counts, as on extraction."""


def read_contents(archive: Archive, within: Extent | None = None) -> Contents:
    """Read the headers of a tar, or of a tar that lies in another one, at `within`.

    Links are resolved to the bytes that they stand for. Names lose a leading `/` and `./`.

    Raises:
        ImagesError: the file is compressed, cut off, damaged, or no tar; or a member cannot be read
            by offset, or its name leads out of the archive.
        ImageUnavailable: the file cannot be read.
    """
    try:
        return _read_contents(archive, within or Extent(0, archive.size))
    except OSError as error:
        raise ImageUnavailable.of(archive.path, error) from None


def _read_contents(archive: Archive, place: Extent) -> Contents:
    with open(open_regular_file(archive.path), "rb", buffering=0) as file:  # noqa: PTH123
        window = _Window(file.fileno(), place)
        _refuse_compressed(archive.path, window)
        scan = _Scan(archive.path, place.offset)
        try:
            with _headers(window) as headers:
                for member in headers:
                    scan.add(member)
        except tarfile.TarError as error:
            raise ImagesError(
                f"{archive.path}: cannot be read as a tar ({error}): it is damaged or cut off; "
                "restore it"
            ) from None
    return scan.contents()


class _Window(io.RawIOBase):
    """A part of a file, which tarfile reads as if it were a file of its own."""

    def __init__(self, descriptor: int, place: Extent) -> None:
        self._descriptor, self._place, self._at = descriptor, place, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence, self._place.size)
        return self._at

    def read(self, size: int = -1) -> bytes:
        remaining = max(self._place.size - self._at, 0)
        size = remaining if size < 0 else min(size, remaining)
        data = os.pread(self._descriptor, size, self._place.offset + self._at)
        self._at += len(data)
        return data


@contextmanager
def _headers(window: _Window) -> Iterator[Iterator[tarfile.TarInfo]]:
    with tarfile.open(
        fileobj=window,
        mode="r:",
        encoding=sys.getfilesystemencoding(),
        errors="surrogateescape",  # as os.fsdecode does
    ) as tar:

        def members() -> Iterator[tarfile.TarInfo]:
            while (member := tar.next()) is not None:
                # tarfile would keep all members, of which each takes a kilobyte
                tar.members.clear()  # type: ignore[attr-defined]
                yield member
            _require_end(window, tar.offset)

        yield members()


def _require_end(window: _Window, offset: int) -> None:
    """Require zeros from the place on where tarfile saw the end of the archive.

    tarfile says nothing of an archive that is cut off there, or damaged.

    Raises:
        tarfile.ReadError: there is anything but zeros up to the end of the file.
    """
    window.seek(offset)
    if len(block := window.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"no end-of-archive block at byte {offset}")
    while block:
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"something else than headers from byte {offset} on")
        block = window.read(1 << 20)


class _Scan:
    """The state of one pass over the headers."""

    def __init__(self, path: Path, base: int) -> None:
        self.path, self.base = path, base
        self.files: dict[str, Extent] = {}
        self.links: dict[str, str] = {}
        self.folders: set[str] = set()
        self.repeated: list[str] = []

    def add(self, member: tarfile.TarInfo) -> None:
        """Add the next member of the archive."""
        name = _normalised(member.name)
        if name is None:
            raise ImagesError(
                f"{self.path}: {printable(member.name)} leads out of the archive: pack it again "
                "without '..' in its names"
            )
        if member.isdir():
            self.folders.add(name)
            return
        if name in self.files or name in self.links:
            self.repeated.append(name)
            self.files.pop(name, None)
            self.links.pop(name, None)
        if member.issym():
            self.links[name] = f"{name.rpartition('/')[0]}/{member.linkname}"
            if member.linkname.startswith("/"):
                self.links[name] = "../" + member.linkname
        elif member.islnk():
            self._add_hard_link(name, member)
        elif member.issparse():
            if is_image(name.rpartition("/")[2]):
                raise ImagesError(
                    f"{self.path}: {printable(name)} is stored sparse: pack the archive again "
                    "without --sparse"
                )
        elif member.isreg():
            self.files[name] = Extent(self.base + member.offset_data, member.size)

    def _add_hard_link(self, name: str, member: tarfile.TarInfo) -> None:
        target = _normalised(member.linkname)
        if target in self.files:
            self.files[name] = self.files[target]
        elif target in self.links:
            self.links[name] = self.links[target]
        elif is_image(name.rpartition("/")[2]):
            raise self._dangling(name, member.linkname)

    def contents(self) -> Contents:
        """The contents after the last member; a link is given as the file that it leads to."""
        files = dict(self.files)
        for name in self.links:
            target = self._follow(name)
            if target in self.files:
                files[name] = self.files[target]
            elif is_image(name.rpartition("/")[2]):
                raise self._dangling(name, self.links[name].removeprefix("../"))
            elif target is not None and any(f.startswith(f"{target}/") for f in self.files):
                raise ImagesError(
                    f"{self.path}: {printable(name)} is a link to a folder: pack the archive "
                    "again with --dereference"
                )
        return Contents(files, frozenset(self.folders), tuple(self.repeated))

    def _follow(self, name: str) -> str | None:
        target: str | None = name
        for _ in range(_LINKS_AT_MOST):
            if target is None or target not in self.links:
                return target
            target = _resolved(self.links[target])
        return None

    def _dangling(self, name: str, target: str) -> ImagesError:
        return ImagesError(
            f"{self.path}: {printable(name)} is a link to {printable(target)}, which the archive "
            "does not hold: pack it again with --dereference (symbolic links) or "
            "--hard-dereference"
        )


def _normalised(name: str) -> str | None:
    """A name without `.` and without leading or doubled `/`; None if it has a `..`."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if ".." in parts else "/".join(parts)


def _resolved(path: str) -> str | None:
    """A link's target as a name in the archive; None if it leads out of the archive."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _refuse_compressed(path: Path, window: _Window) -> None:
    start = window.read(8)
    window.seek(0)
    for magic, tool in _COMPRESSED.items():
        if start.startswith(magic):
            raise ImagesError(
                f"{path} is compressed, so that no image in it can be read by itself: unpack it "
                f"with {tool}, and pass the .tar or the folder; photographs hardly get smaller by "
                "packing"
            )
