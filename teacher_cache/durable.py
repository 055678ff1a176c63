"""Files that are either whole and on disk, or not there: the one owner of fsync and rename."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`; a crash leaves the old file or the new one, never a mixture."""
    temporary = _write_beside(path, data)
    temporary.replace(path)
    sync_folder(path.parent)


def write_all(files: Mapping[Path, bytes]) -> None:
    """Replace several files, none of them before all are on disk beside their places.

    So a full disk or a folder without write access leaves every one as it was.
    """
    temporaries: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            temporaries[path] = _write_beside(path, data)
    except BaseException:
        for temporary in temporaries.values():
            temporary.unlink()
        raise
    for path, temporary in temporaries.items():
        temporary.replace(path)
    for folder in {path.parent for path in files}:
        sync_folder(folder)


def sync_file(path: Path) -> None:
    """Flush one file's bytes to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to disk, so that a new name survives a power cut."""
    sync_file(path)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, if they are missing, so that they survive a power cut.

    Raises:
        FileExistsError, NotADirectoryError: something else is there.
    """
    if path.is_dir():
        return
    if not path.parent.is_dir():
        make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def _write_beside(path: Path, data: bytes) -> Path:
    # its own name is not part of it: that may be as long as a name can be
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
