"""A cache in a folder: flushed files, names taken by link and rename, holders known by flock."""

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from teacher_cache.durable import sync_folder, sync_tree, write_atomic
from teacher_cache.errors import CacheError
from teacher_cache.ledger import LedgerEntry, encode_entry, entry_key
from teacher_cache.staging import (
    Held,
    abandoned,
    claim,
    hold_folder_beside,
    publishing,
    stage,
    sweep,
)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Disk:
    """A `Place` on a file system; `Place` says what each method does."""

    root: Path

    def read(self, key: str) -> bytes | None:  # noqa: D102
        try:
            return (self.root / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def exists(self, key: str) -> bool:  # noqa: D102
        return (self.root / key).is_file()

    def keys(self, below: str = "") -> Iterator[str]:  # noqa: D102
        for folder, _, names in os.walk(self.root / below):
            prefix = Path(folder).relative_to(self.root)
            yield from ((prefix / name).as_posix() for name in names)

    def total_bytes(self) -> int:  # noqa: D102
        return sum((self.root / key).stat().st_size for key in self.keys())

    def add(self, key: str, data: bytes) -> bool:  # noqa: D102
        path = self.root / key
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            sync_folder(path.parent.parent)
        staged = stage(self.root, data)
        try:
            os.link(staged.path, path)  # unlike a rename, a link fails where the name is taken
        except FileExistsError:
            return self.read(key) == data
        finally:
            staged.release()
        sync_folder(path.parent)
        return True

    def update(self, key: str, change: Callable[[bytes], bytes]) -> None:  # noqa: D102
        with self.alone():
            before = (self.root / key).read_bytes()
            after = change(before)
            if after != before:
                self.replace(key, after)

    def replace(self, key: str, data: bytes) -> None:  # noqa: D102
        write_atomic(self.root / key, data)

    def remove(self, key: str) -> None:  # noqa: D102
        (self.root / key).unlink(missing_ok=True)

    def create(self, files: Mapping[str, bytes]) -> None:  # noqa: D102
        self.root.parent.mkdir(parents=True, exist_ok=True)
        temporary = hold_folder_beside(self.root)
        try:
            for key, data in files.items():
                path = temporary.path / key
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            sync_tree(temporary.path)
            temporary.path.rename(self.root)
            sync_folder(self.root.parent)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise CacheError(
                    f"{self.root} is a mount point, which a cache cannot replace: choose a folder "
                    f"in it, such as --out {self.root}/cache"
                ) from None
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            if not self.exists("zarr.json"):
                raise CacheError(
                    f"{self.root} exists and is not a cache: choose another --out, or empty it"
                ) from None
        finally:
            temporary.release()

    def publish(self, entry: LedgerEntry, files: Mapping[str, bytes]) -> None:
        """Write the files aside, flush them, then move them into place and name them, alone.

        Any number of processes may write the same block: the first one's records stay, whole, and
        the others' are thrown away. A crash leaves files that the ledger does not name, which the
        next writer of the block replaces.
        """
        staged: dict[str, tuple[bytes, Held]] = {}
        try:
            for key, data in files.items():
                staged[key] = (data, stage(self.root, data))
            with self.alone():
                if not self.exists(entry_key(entry.block)):
                    self._move_into_place(staged)
                    self.add(entry_key(entry.block), encode_entry(entry))
        finally:
            for _, held in staged.values():
                held.release()

    def withdraw(self, entry_key: str, file_keys: Iterable[str]) -> None:  # noqa: D102
        with self.alone():
            self.remove(entry_key)
            sync_folder((self.root / entry_key).parent)
            for key in file_keys:
                self.remove(key)

    def alone(self) -> AbstractContextManager[None]:  # noqa: D102
        return publishing(self.root)

    def claim(self, name: str) -> Held | None:  # noqa: D102
        return claim(self.root, name)

    def claims_outlive_s(self) -> float:
        """The system drops the locks of the dead at once."""
        return 0.0

    def look_every_s(self) -> float:  # noqa: D102
        return 0.5

    def abandoned(self) -> list[str]:
        """Also temporary folders beside the cache, by keys that begin with `../`."""
        return [
            path.relative_to(self.root).as_posix()
            if path.is_relative_to(self.root)
            else f"../{path.name}"
            for path in abandoned(self.root)
        ]

    def sweep(self) -> None:  # noqa: D102
        sweep(self.root)

    def in_order(  # noqa: D102
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result]:
        return map(function, items)

    def arrays(self) -> Path:  # noqa: D102
        return self.root

    def _move_into_place(self, staged: Mapping[str, tuple[bytes, Held]]) -> None:
        folders = set()
        for key, (data, held) in staged.items():
            path = self.root / key
            path.parent.mkdir(parents=True, exist_ok=True)
            held.path.replace(path)
            folders |= {self.root / folder for folder in Path(key).parents}
            if path.stat().st_size != len(data):
                raise OSError(
                    errno.EIO, "a file on disk is shorter than what was written", str(path)
                )
        for folder in folders:
            sync_folder(folder)
