"""Keys are the paths of a cache's files below its root, with `/` between their parts."""

import re
from collections.abc import Collection

from teacher_cache.errors import CacheError, printable

MANIFEST = "zarr.json"
"""A cache exists as soon as this file does, so it is written last."""
STAGING = "staging"
"""The folder of the writers' workbench: locks, claims, temporary files."""
LOCK_KEY = f"{STAGING}/lock"
"""The lock of a cache's writers in a folder; an object store has none."""
QUARANTINE = "quarantine"
"""The folder of the files that a repair has taken out of the cache."""

_CLAIM = r"(tile|source|sample|table)(-\d+)*"
_TEMPORARY = r"[0-9a-f]{16}\.tmp"
_WORKBENCH = re.compile(rf"staging/({_TEMPORARY}|{_CLAIM})", re.ASCII)


def parts_of(key: str) -> tuple[str, ...]:
    """Split a key into the names of the folders that lead to the file, and the file's own name.

    Raises:
        CacheError: the key is not a relative path that stays below the root.
    """
    parts = tuple(key.split("/"))
    if "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise CacheError(
            f"'{printable(key)}' names no file of a cache: expected names with '/' between them, "
            "none of which is empty, '.' or '..'"
        )
    return parts


def require_claim(name: str) -> str:
    """Return the name of a claim unchanged, if `is_workbench` recognises it.

    Raises:
        ValueError: the name has another pattern, so a sweep would never remove the claim.
    """
    if not re.fullmatch(_CLAIM, name, re.ASCII):
        raise ValueError(f"{name!r} is no name of a claim: expected the pattern {_CLAIM}")
    return name


def is_workbench(key: str) -> bool:
    """Whether a key is that of a claim or a temporary file, which a sweep may remove.

    `staging/lock` is none of these: it is never removed.
    """
    return _WORKBENCH.fullmatch(key) is not None


def top_names(files: Collection[str]) -> set[str]:
    """The names at the top of a cache that was created out of these files."""
    return {key.partition("/")[0] for key in files} | {STAGING}


def is_remnant(key: str, files: Collection[str]) -> bool:
    """Whether the key may be what a process left that was killed while it created a cache.

    That cache may have been one of another recipe. So a file counts if its name below the top
    folder is that of any of these files, in whichever of their folders it lies.
    """
    if key in files or key == LOCK_KEY or is_workbench(key):
        return True
    top, _, rest = key.partition("/")
    return top in top_names(files) and rest in {each.partition("/")[2] for each in files} - {""}


def no_cache(place: str, others: Collection[str]) -> CacheError:
    """The error that no cache is created in a place because other files lie there."""
    more = ", ..." if len(others) > 1 else ""
    return CacheError(
        f"{place} exists and is not a cache, it holds something else "
        f"({printable(min(others))}{more}): choose another --out, or empty it"
    )
