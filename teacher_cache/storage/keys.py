"""Keys: the names that the files of a cache have below its root, with `/` between their parts."""

import re
from collections.abc import Collection

from teacher_cache.errors import CacheError, printable

MANIFEST = "zarr.json"
"""A cache exists as soon as this file does, so it is written last."""
STAGING = "staging"
"""The writers' workbench: locks, claims, temporary files."""
LOCK_KEY = f"{STAGING}/lock"
"""The writers' lock in a folder; an object store has none."""
QUARANTINE = "quarantine"
"""What a repair has taken out of the cache."""

_CLAIM = r"(tile|source|sample|table)(-\d+)*"
_TEMPORARY = r"[0-9a-f]{16}\.tmp"
_WORKBENCH = re.compile(rf"staging/({_TEMPORARY}|{_CLAIM})", re.ASCII)


def parts_of(key: str) -> tuple[str, ...]:
    """The names of the folders that lead to a file, and the file's own.

    Raises:
        CacheError: it is not a relative path that stays below the root.
    """
    parts = tuple(key.split("/"))
    if "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise CacheError(
            f"'{printable(key)}' names no file of a cache: expected names with '/' between them, "
            "none of which is empty, '.' or '..'"
        )
    return parts


def require_claim(name: str) -> str:
    """A claim's name as it is, so that `is_workbench` knows every claim again.

    Raises:
        ValueError: a name of another pattern.
    """
    if not re.fullmatch(_CLAIM, name, re.ASCII):
        raise ValueError(f"{name!r} is no name of a claim: expected the pattern {_CLAIM}")
    return name


def is_workbench(key: str) -> bool:
    """Whether it is the name of a claim or a temporary file, which may be swept away.

    `staging/lock` is none of these: it stays for good.
    """
    return _WORKBENCH.fullmatch(key) is not None


def top_names(files: Collection[str]) -> set[str]:
    """What lies directly in a cache that was created out of these files."""
    return {key.partition("/")[0] for key in files} | {STAGING}


def is_remnant(key: str, files: Collection[str]) -> bool:
    """Whether a creation out of files such as these may have left this key when it was killed.

    The creation may have been one of another recipe, so any file of such a name counts in any of
    the folders.
    """
    if key in files or key == LOCK_KEY or is_workbench(key):
        return True
    top, _, rest = key.partition("/")
    return top in top_names(files) and rest in {each.partition("/")[2] for each in files} - {""}


def no_cache(place: str, others: Collection[str]) -> CacheError:
    """The error for a place in which no cache is created, because others' files lie there."""
    more = ", ..." if len(others) > 1 else ""
    return CacheError(
        f"{place} exists and is not a cache, it holds something else "
        f"({printable(min(others))}{more}): choose another --out, or empty it"
    )
