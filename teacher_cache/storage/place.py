"""Where a cache lies: a folder on a disk, or the objects below a URL.

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
    """A name that this process holds."""

    def release(self) -> None:
        """Let go of it."""


class Place(Protocol):
    """What a cache needs of the store below it. Any of it may raise OSError or StoreError.

    A key is a relative path with `/` between its parts; one that leads out of the cache is a
    CacheError. No link below the root is followed, neither to read nor to write: where a link, a
    pipe or a device stands in the place of a file or folder, UnexpectedFile names it.

    `str` of a place is what a user typed.
    """

    def read(self, key: str, at_most: int | None = None) -> bytes | None:
        """A file's bytes; None where there is none.

        Raises:
            UnexpectedFile: no regular file, or one of more than `at_most` bytes: it is not read.
        """

    def exists(self, key: str) -> bool:
        """Whether there is such a regular file; a link is none."""

    def keys(self, below: str = "") -> Iterator[str]:
        """Every key below a folder of the cache, of whatever is no folder, in no order.

        Links, pipes and the like are among them, so that a verifier sees them; to read one is an
        UnexpectedFile. A folder that is nested deeper than `tree.DEEPEST` is one key, too.
        """

    def path_of(self, key: str) -> Path | None:
        """Where a regular file lies, to be mapped; None where there is none, or it has no path."""

    def total_bytes(self) -> int:
        """What all files weigh."""

    def add(self, key: str, data: bytes) -> bool:
        """Write a file, durably, if there is none; False where other bytes were there first.

        On a disk it waits for the lock: not to be called under `alone`.
        """

    def replace(self, key: str, data: bytes) -> None:
        """Write a file, durably, in place of what was there."""

    def remove(self, key: str) -> None:
        """Take a file away, if it is there."""

    def create(self, files: Mapping[str, bytes]) -> None:
        """Make the cache out of its first files: `zarr.json` last, and only if it is absent.

        What is there of a creation that was killed is used where it is the same, and else replaced;
        an empty folder is filled, its owner and mode stay.

        Raises:
            CacheError: something else is there, and nothing was changed. A cache that another
                process made is none: look at what `zarr.json` says.
        """

    def publish(self, entry_key: str, entry: bytes, files: Mapping[str, bytes]) -> bool:
        """Commit files, then the entry of the ledger that names them; the first writer's stay.

        Args:
            entry_key: where the entry lies.
            entry: its bytes; it names each of the files with its SHA-256.
            files: the bytes of each.

        Returns:
            Whether this very entry stands now; False where another's was first.
        """

    def quarantine(self, keys: Iterable[str], folder: str) -> None:
        """Move files to `quarantine/<folder>/<key>`, durably; a link is moved as itself.

        Nothing there is overwritten: a second one of a name gets a number. Keys at which nothing
        is are passed over. It takes no lock: call it under `alone` where writers may be at work.
        """

    def withdraw(self, entry_key: str, file_keys: Iterable[str], folder: str) -> None:
        """Move a block's entry and files to the quarantine, so that it counts as never filled.

        It takes the lock itself: not to be called under `alone`.
        """

    def alone(self) -> AbstractContextManager[None]:
        """Keep writers from publishing meanwhile, where the store can."""

    def claim(self, name: str) -> Claim | None:
        """Take a name for this process alone; None while another process holds it."""

    def claims_outlive_s(self) -> float:
        """How long the claims of a killed process may still stand."""

    def look_every_s(self) -> float:
        """How often the ledger may be asked by one who waits for it to grow."""

    def abandoned(self) -> list[str]:
        """The keys of what killed writers left behind."""

    def sweep(self) -> None:
        """Remove what killed writers left behind; what living ones hold stays."""

    def in_order(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result]:
        """`map`, some of it ahead and at once where the store answers slowly."""

    def arrays(self) -> Any:
        """What zarr opens."""
