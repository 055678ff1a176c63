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


def sync_tree(root: Path) -> None:
    """Flush every file and folder below `root`, and `root` itself."""
    for folder, _, files in os.walk(root):
        for name in files:
            sync_file(Path(folder) / name)
        sync_folder(Path(folder))


def _write_beside(path: Path, data: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
