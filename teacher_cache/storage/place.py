"""A place is where a cache lies: a folder on a disk, or the objects below a URL.

Everything that reads or changes a cache goes through a `Place`, by keys: paths below the cache with
`/` between their parts. `Disk` is the folder, `Bucket` the object store.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    pass

Item = TypeVar("Item")
Result = TypeVar("Result")


class Claim(Protocol):
    """A name that no other process can take until this one releases it."""

    def release(self) -> None:
        """Let other processes take the name."""


class Place(Protocol):
    """The operations that a cache needs of its store. Any may raise OSError or StoreError.

    A key is a relative path with `/` between its parts; a key that leads out of the cache raises
    CacheError. No link below the root is followed, neither to read nor to write: where a link, a
    pipe or a device stands in the place of a file or folder, UnexpectedFile names it.

    `str` of a place is what a user typed.
    """

    def read(self, key: str, at_most: int | None = None) -> bytes | None:
        """A file's bytes; None where there is none.

        Raises:
            UnexpectedFile: it is no regular file, or has more than `at_most` bytes; it is not read.
        """

    def exists(self, key: str) -> bool:
        """Whether there is a regular file of this key; a link is none."""

    def keys(self, below: str = "") -> Iterator[str]:
        """The keys of everything below a folder of the cache that is no folder, in no order.

        Links, pipes and the like are among them, so that a verifier sees them; reading one raises
        UnexpectedFile. A folder that is nested deeper than `tree.DEEPEST` is given as one key.
        """

    def path_of(self, key: str) -> Path | None:
        """The path of a regular file, to be mapped; None if there is no file, or it has no path."""

    def total_bytes(self) -> int:
        """The size of all files together."""

    def add(self, key: str, data: bytes) -> bool:
        """Write a file, durably, if there is none; False if it is there with other bytes.

        On a disk this waits for the lock, so it must not be called under `alone`.
        """

    def replace(self, key: str, data: bytes) -> None:
        """Write a file, durably, over the one that is there."""

    def remove(self, key: str) -> None:
        """Remove a file, if it is there."""

    def create(self, files: Mapping[str, bytes]) -> None:
        """Create the cache out of its first files; `zarr.json` is written last, and never replaced.

        Files that a killed process left when it created a cache here are kept where they are the
        same, and replaced where not. An empty folder is filled; its owner and mode stay.

        Raises:
            CacheError: other files are there, and nothing was changed. It is not raised if another
                process has created a cache here: the caller reads what `zarr.json` says.
        """

    def publish(self, entry_key: str, entry: bytes, files: Mapping[str, bytes]) -> bool:
        """Commit files, then the entry of the ledger that names them.

        If several writers publish the same entry, the files of the first stay.

        Args:
            entry_key: where the entry lies.
            entry: the bytes of the entry, which names each of the files with its SHA-256.
            files: the bytes of each file.

        Returns:
            Whether the ledger has this very entry now; False if another writer's was there first.
        """

    def quarantine(self, keys: Iterable[str], folder: str) -> None:
        """Move files to `quarantine/<folder>/<key>`, durably; a link is moved, not its target.

        Nothing is overwritten there: a second file of the same name gets a number. A key without a
        file is passed over. No lock is taken: call this under `alone` if writers may be running.
        """

    def withdraw(self, entry_key: str, file_keys: Iterable[str], folder: str) -> None:
        """Move a block's entry and files to the quarantine, so that the block is missing again.

        This takes the lock, so it must not be called under `alone`.
        """

    def alone(self) -> AbstractContextManager[None]:
        """Keep writers from publishing while the context lasts, if the store has locks."""

    def claim(self, name: str) -> Claim | None:
        """Take a name for this process alone; None while another process has it."""

    def claims_outlive_s(self) -> float:
        """For how many seconds the claims of a killed process may remain."""

    def look_every_s(self) -> float:
        """How many seconds a process waits between two looks at a ledger that it wants to grow."""

    def abandoned(self) -> list[str]:
        """The keys of the workbench's files that killed writers left behind."""

    def sweep(self) -> None:
        """Remove the files of killed writers from the workbench; those of living writers stay."""

    def in_order(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result]:
        """`map` in order; where the store answers slowly, several items ahead and concurrently."""

    def arrays(self) -> Any:
        """The store that zarr opens."""
