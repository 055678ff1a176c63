"""The writers' workbench, `<cache>/staging`: its files live no longer than who holds them.

Each file there is locked (flock) by the process that made it. The system drops the lock when the
process ends, however it ends, so a file that can be locked belongs to the dead: `sweep` removes it.
One file stays for good, `lock`: who holds it may publish shards and change the ledger.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

FOLDER = "staging"


@dataclass(frozen=True, slots=True)
class Held:
    """A file or folder that this process holds until `release`."""

    path: Path
    descriptor: int

    def release(self) -> None:
        """Let go of it; what is still there under its name is removed."""
        if self.path.is_dir():
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            self.path.unlink(missing_ok=True)
        os.close(self.descriptor)


def claim(root: Path, name: str) -> Held | None:
    """Take a name for this process alone; None while another process holds it."""
    path = _folder(root) / name
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not _locked(descriptor):
            os.close(descriptor)
            return None
        if _is_at(descriptor, path):
            return Held(path, descriptor)
        os.close(descriptor)  # its last holder removed it between our open and our lock


def stage(root: Path, data: bytes) -> Held:
    """Write a temporary file, flushed to disk, under a name of its own.

    Raises:
        OSError: the disk is full or cannot be written; nothing stays.
    """
    while (held := claim(root, f"{secrets.token_hex(8)}.tmp")) is None:
        pass  # a sweep looked at it just then
    try:
        with os.fdopen(os.dup(held.descriptor), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        held.release()
        raise
    return held


def hold_folder_beside(root: Path) -> Held:
    """Make a temporary folder next to `root`, in which a cache is prepared."""
    while True:
        path = root.with_name(f".{root.name}.{secrets.token_hex(8)}.tmp")
        path.mkdir()
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # swept before we could hold it
        with suppress(OSError):  # NFS locks no folders; then no sweep can take it for abandoned
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_at(descriptor, path):
            return Held(path, descriptor)
        os.close(descriptor)


@contextmanager
def publishing(root: Path) -> Iterator[None]:
    """Be the only one to move shards into place or to change the ledger; waits for its turn."""
    descriptor = os.open(_folder(root) / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def abandoned(root: Path) -> list[Path]:
    """What killed writers left behind: files and folders that nobody holds."""
    return [path for path in _candidates(root) if _try(path, remove=False)]


def sweep(root: Path) -> None:
    """Remove what killed writers left behind; what living ones hold stays."""
    for path in _candidates(root):
        _try(path, remove=True)


def _candidates(root: Path) -> list[Path]:
    folder = root / FOLDER
    inside = [p for p in folder.iterdir() if p.name != "lock"] if folder.is_dir() else []
    beside = root.parent.glob(f".{root.name}.*.tmp") if root.parent.is_dir() else ()
    return [*inside, *beside]


def _try(path: Path, *, remove: bool) -> bool:
    """Whether nobody held `path`; it is gone then, if it was to be removed."""
    try:
        # a lock over NFS wants a descriptor that may write, which folders do not have
        mode = os.O_RDONLY if path.is_dir() else os.O_RDWR
        held = Held(path, os.open(path, mode | os.O_CLOEXEC))
        free = _locked(held.descriptor) and _is_at(held.descriptor, path)
    except OSError:
        return False
    if free and remove:
        held.release()
    else:
        os.close(held.descriptor)
    return free


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _folder(root: Path) -> Path:
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    return folder
