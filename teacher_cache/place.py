"""Where a cache lies: a folder on a disk, or the objects below a URL.

Everything that reads or changes a cache goes through a `Place`, by keys: paths below the cache with
`/` between their parts. `Disk` is the folder, `Bucket` the object store; a root is what names them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

from teacher_cache.errors import LocationError

if TYPE_CHECKING:
    from teacher_cache.bucket import Bucket
    from teacher_cache.ledger import LedgerEntry

Root: TypeAlias = "Path | Bucket"
"""A folder's path, or an object store's prefix; `str` of it is what a user typed."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Claim(Protocol):
    """A name that this process holds."""

    def release(self) -> None:
        """Let go of it."""


class Place(Protocol):
    """What a cache needs of the store below it. Any of it may raise OSError or StoreError."""

    def read(self, key: str) -> bytes | None:
        """A file's bytes; None where there is none."""

    def exists(self, key: str) -> bool:
        """Whether there is such a file."""

    def keys(self, below: str = "") -> Iterator[str]:
        """Every file below a folder of the cache."""

    def total_bytes(self) -> int:
        """What all files weigh."""

    def add(self, key: str, data: bytes) -> bool:
        """Write a file, durably, if there is none; False where other bytes were there first."""

    def update(self, key: str, change: Callable[[bytes], bytes]) -> None:
        """Replace a file by a change of it, as one step: no other's change is lost."""

    def replace(self, key: str, data: bytes) -> None:
        """Write a file, durably, in place of what was there."""

    def remove(self, key: str) -> None:
        """Take a file away, if it is there."""

    def create(self, files: Mapping[str, bytes]) -> None:
        """Make the cache out of its first files, whole or not at all.

        Raises:
            CacheError: something else is there. A cache that another process just made is none.
        """

    def publish(self, entry: "LedgerEntry", files: Mapping[str, bytes]) -> None:
        """Commit a block: its files, then its entry in the ledger; the first writer's stay."""

    def withdraw(self, entry_key: str, file_keys: Iterable[str]) -> None:
        """Take a block away, so that it counts as never filled."""

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


def place_of(root: Root) -> Place:
    """The store below a root."""
    from teacher_cache.disk import Disk

    return Disk(root) if isinstance(root, Path) else root


def locate(text: str) -> Root:
    """A path or URL as a user types it.

    Raises:
        LocationError: a URL of an unknown kind, or one that holds credentials; its message does
            not repeat them.
        StoreError: obstore is not installed.
    """
    scheme, separator, _ = text.partition("://")
    if not separator:
        return Path(text)
    _require_no_secret(scheme, text)
    if scheme == "file":
        return Path(unquote(urlsplit(text).path))
    from teacher_cache.bucket import open_bucket

    return open_bucket(text.rstrip("/"))


def _require_no_secret(scheme: str, text: str) -> None:
    """Refuse what may be a secret without a word of it: a URL is printed, logged and recorded."""
    url = urlsplit(text)
    names_container = scheme in ("abfs", "abfss") and ":" not in url.netloc  # container@account
    has_port = scheme in ("http", "https") and "@" not in url.netloc
    suspicious = ("@" in text and not names_container) or (":" in url.netloc and not has_port)
    if suspicious or url.query or url.fragment or "?" in text:
        raise LocationError(
            f"the {scheme}:// URL holds more than a place (a user, password, port, query or "
            f"fragment): write {scheme}://BUCKET/PREFIX and give credentials and endpoint in the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, ...)"
        )
