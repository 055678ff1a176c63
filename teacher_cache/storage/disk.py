"""A cache in a folder: files are flushed and then moved into place under a lock (flock)."""

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TypeVar

from typing_extensions import override

from teacher_cache.durable import make_folder
from teacher_cache.errors import CacheError
from teacher_cache.storage.keys import (
    MANIFEST,
    QUARANTINE,
    is_remnant,
    no_cache,
    parts_of,
    top_names,
)
from teacher_cache.storage.ledger import MOST_ENTRY_BYTES
from teacher_cache.storage.place import Place
from teacher_cache.storage.staging import Held, abandoned, claim, publishing, stage, sweep
from teacher_cache.storage.tree import Tree

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Disk(Place):
    """A `Place` on a file system; `Place` says what each method does.

    A file gets its name by a rename under the lock, after a look whether the name is free. So no
    hard links are needed, which exFAT and some network mounts lack. A file system without flock is
    refused before any work.
    """

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    @property
    def tree(self) -> Tree:
        """The files below the root."""
        return Tree(self.root)

    @override
    def read(self, key: str, at_most: int | None = None) -> bytes | None:
        return self.tree.read(key, at_most)

    @override
    def exists(self, key: str) -> bool:
        status = self.tree.status(key)
        return status is not None and S_ISREG(status.st_mode)

    @override
    def keys(self, below: str = "") -> Iterator[str]:
        return (key for key, _ in self.tree.walk(below))

    @override
    def path_of(self, key: str) -> Path | None:
        return self.root / key if self.exists(key) else None

    @override
    def total_bytes(self) -> int:
        return sum(entry.stat(follow_symlinks=False).st_size for _, entry in self.tree.walk())

    @override
    def add(self, key: str, data: bytes) -> bool:
        return self.publish(key, data, {})

    @override
    def replace(self, key: str, data: bytes) -> None:
        with self._staged({key: data}) as staged:
            self._move_into_place(staged)

    @override
    def remove(self, key: str) -> None:
        self.tree.remove(key)

    @override
    def create(self, files: Mapping[str, bytes]) -> None:
        self._make_root()
        if self.exists(MANIFEST):
            return
        if others := self._others(files):
            if self.exists(MANIFEST):  # another process has just finished the cache
                return
            raise no_cache(str(self), others)
        with self.alone():
            if self.exists(MANIFEST):  # while this process waited for the lock
                return
            rest = {
                key: data
                for key, data in files.items()
                if key != MANIFEST and not self._holds(key, data)
            }
            with self._staged(rest) as staged:
                self._move_into_place(staged)
            with self._staged({MANIFEST: files[MANIFEST]}) as staged:
                self._move_into_place(staged)

    @override
    def publish(self, entry_key: str, entry: bytes, files: Mapping[str, bytes]) -> bool:
        """Write and flush the files in `staging`, then move them and their entry into place.

        The moves are made under the lock. Any number of processes may write the same block: the
        records of the first stay, and those of the others are thrown away. A crash leaves files
        that the ledger does not name, which the next writer of the block replaces.
        """
        with self._staged(files) as staged, self._staged({entry_key: entry}) as named, self.alone():
            if (standing := self.read(entry_key, MOST_ENTRY_BYTES)) is not None:
                return standing == entry
            self._move_into_place(staged)
            self._move_into_place(named)
        return True

    @override
    def quarantine(self, keys: Iterable[str], folder: str) -> None:
        for key in keys:
            self.tree.set_aside(key, f"{QUARANTINE}/{folder}/{key}")

    @override
    def withdraw(self, entry_key: str, file_keys: Iterable[str], folder: str) -> None:
        """Move the entry first: a crash after that leaves files that no entry names."""
        with self.alone():
            self.quarantine([entry_key, *file_keys], folder)

    @override
    def alone(self) -> AbstractContextManager[None]:
        return publishing(self.tree)

    @override
    def claim(self, name: str) -> Held | None:
        return claim(self.tree, name)

    @override
    def claims_outlive_s(self) -> float:
        """The system drops the locks of a process when it ends."""
        return 0.0

    @override
    def look_every_s(self) -> float:
        return 0.5

    @override
    def abandoned(self) -> list[str]:
        return abandoned(self.tree)

    @override
    def sweep(self) -> None:
        sweep(self.tree)

    @override
    def in_order(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result]:
        return map(function, items)

    @override
    def arrays(self) -> Path:
        return self.root

    def _make_root(self) -> None:
        try:
            make_folder(self.root)
        except (FileExistsError, NotADirectoryError):
            raise CacheError(
                f"{self} exists and is not a cache, nor is it a folder: choose another --out"
            ) from None

    def _others(self, files: Mapping[str, bytes]) -> list[str]:
        """The names of files that no interrupted creation of a cache can have left in the folder.

        Only if all names at its top are those of a cache are the folders below searched: the user
        may have named a home folder.
        """
        if names := {path.name for path in self.root.iterdir()} - top_names(files):
            return sorted(names)
        if strangers := [
            key
            for key, entry in self.tree.walk()
            if not (entry.is_file(follow_symlinks=False) and is_remnant(key, files))
        ]:
            return strangers
        found = {key: self.tree.status(key) for key in files}
        return [key for key, status in found.items() if status and S_ISDIR(status.st_mode)]

    def _holds(self, key: str, data: bytes) -> bool:
        status = self.tree.status(key)
        return status is not None and status.st_size == len(data) and self.read(key) == data

    @contextmanager
    def _staged(self, files: Mapping[str, bytes]) -> Iterator[dict[str, tuple[Held, int]]]:
        """For each key the temporary file that has its data, flushed to disk, and their length."""
        for key in files:
            parts_of(key)
        with ExitStack() as stack:
            staged = {}
            for key, data in files.items():
                temporary = stage(self.tree, data)
                stack.callback(temporary.release)
                staged[key] = temporary, len(data)
            yield staged

    def _move_into_place(self, staged: Mapping[str, tuple[Held, int]]) -> None:
        for key, (temporary, size) in staged.items():
            self.tree.move(temporary.key, key)
            status = self.tree.status(key)
            if status is None or status.st_size != size:
                raise OSError(
                    errno.EIO,
                    "a file that was just put there is gone"
                    if status is None
                    else "a file on disk is shorter than what was written",
                    str(self.root / key),
                )
        for folder in {parts_of(key)[:-1] for key in staged}:
            self.tree.flush(folder)
