"""The files below a folder; no link is followed, and nothing but regular files is opened.

A cache may come from a stranger. A link in it could lead out of it, and a pipe could block whoever
reads it. So every folder below the root is opened by itself, relative to the one above it
(openat(2) with O_NOFOLLOW), and only regular files are read. The root itself may be a link, because
a user has typed its name.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from teacher_cache.errors import UnexpectedFile, UnexpectedFolder
from teacher_cache.storage.keys import parts_of

DEEPEST = 32
"""Folders that are nested deeper are not entered; a cache's own are four deep, in quarantine."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # else opening a pipe waits for its writer
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFREG: "a file",
}


@dataclass(frozen=True, slots=True)
class Tree:
    """The files and folders below `root`, by keys or by the names that keys consist of.

    Any method may raise UnexpectedFile: a link or something else stands where a file or folder is
    expected.
    """

    root: Path

    @contextmanager
    def folder(self, names: Sequence[str]) -> Iterator[int]:
        """A descriptor of a folder below the root, or of the root itself.

        Raises:
            FileNotFoundError: there is no such folder.
            NotADirectoryError: the root is no folder.
        """
        with self._entered(names, _as_it_is) as descriptor:
            yield descriptor

    @contextmanager
    def made_folder(self, names: Sequence[str]) -> Iterator[int]:
        """As `folder`, but missing folders are made, durably. The root must exist."""
        with self._entered(names, _make) as descriptor:
            yield descriptor

    def status(self, key: str) -> os.stat_result | None:
        """What the file system says of a file, link or folder; None if there is none."""
        *folders, name = parts_of(key)
        try:
            with self.folder(folders) as folder:
                return os.stat(name, dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, key: str, at_most: int | None = None) -> bytes | None:
        """The bytes of a regular file; None if there is none.

        Raises:
            UnexpectedFile: also if the file has more than `at_most` bytes; it is not read then.
        """
        *folders, name = parts_of(key)
        try:
            with self.folder(folders) as folder:
                descriptor = self.open_file(key, folder, name, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        with os.fdopen(descriptor, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if at_most is not None and size > at_most:
                found = f"has {size} bytes, at most {at_most} are expected"
                raise UnexpectedFile(str(self.root), key, found)
            return file.read(size)

    def open_file(self, key: str, folder: int, name: str, flags: int) -> int:
        """A descriptor of a regular file in an open folder; `key` names it in errors."""
        with suppress(FileNotFoundError):  # the flags may ask to create it
            self._require_file(key, os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
        descriptor = os.open(name, flags | _FILE, 0o666, dir_fd=folder)
        try:
            self._require_file(key, os.fstat(descriptor).st_mode)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def walk(self, below: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
        """The keys of everything below a folder that is no folder, links and pipes too, in no
        order.

        A folder that is nested too deep is given as one key and not entered. Files that vanish
        during the walk are passed over; any other failure of the file system is raised.
        """
        pending = [parts_of(below) if below else ()]
        while pending:
            names = pending.pop()
            prefix = "/".join((*names, ""))
            try:
                with self.folder(names) as folder, os.scandir(folder) as entries:
                    for entry in entries:
                        if len(names) < DEEPEST and entry.is_dir(follow_symlinks=False):
                            pending.append((*names, entry.name))
                        else:
                            yield prefix + entry.name, entry
            except (FileNotFoundError, NotADirectoryError):
                continue

    def move(self, key: str, to: str) -> None:
        """Rename a file within the tree, over the one that is there; nothing is flushed."""
        *folders, name = parts_of(key)
        *new_folders, new_name = parts_of(to)
        with self.folder(folders) as folder, self.made_folder(new_folders) as new_folder:
            os.rename(name, new_name, src_dir_fd=folder, dst_dir_fd=new_folder)

    def set_aside(self, key: str, to: str) -> None:
        """Rename whatever has this key, durably; if `to` is taken, a number is added to it."""
        numbered = (to if number == 0 else f"{to}.{number}" for number in count())
        free = next(name for name in numbered if self.status(name) is None)
        with suppress(FileNotFoundError):
            self.move(key, free)
            self.flush(parts_of(free)[:-1])
            self.flush(parts_of(key)[:-1])

    def remove(self, key: str) -> None:
        """Remove a file or link, if it is there."""
        *folders, name = parts_of(key)
        with suppress(FileNotFoundError), self.folder(folders) as folder:
            os.unlink(name, dir_fd=folder)

    def flush(self, names: Sequence[str]) -> None:
        """Flush a folder's entries to disk, so that new names survive a power cut."""
        with self.folder(names) as folder:
            os.fsync(folder)

    @contextmanager
    def _entered(self, names: Sequence[str], enter: Callable[[str, int], int]) -> Iterator[int]:
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for depth, name in enumerate(names, 1):
                try:
                    inner = enter(name, descriptor)
                except OSError as error:
                    if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                        raise
                    kind = _kind(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode)
                    found = f"is {kind}, where a cache has a folder"
                    raise UnexpectedFolder(str(self.root), "/".join(names[:depth]), found) from None
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        except OSError as error:  # it has a name relative to a descriptor, or none
            name = error.filename if isinstance(error.filename, str) else ""
            error.filename = str(self.root.joinpath(*names, name))
            raise
        finally:
            os.close(descriptor)

    def _require_file(self, key: str, mode: int) -> None:
        if not stat.S_ISREG(mode):
            found = f"is {_kind(mode)}, where a cache has a file"
            raise UnexpectedFile(str(self.root), key, found)


def _as_it_is(name: str, folder: int) -> int:
    return os.open(name, _FOLDER, dir_fd=folder)


def _make(name: str, folder: int) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        with suppress(FileExistsError):  # another process may be quicker
            os.mkdir(name, dir_fd=folder)
        os.fsync(folder)
        return os.open(name, _FOLDER, dir_fd=folder)


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "something unknown")
