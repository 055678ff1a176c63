"""The writers' workbench is `<cache>/staging`: each of its files belongs to a running process.

The process that makes a file there locks it (flock). The system drops the lock when the process
ends, however it ends. So a file that can be locked belongs to no running process, and `sweep`
removes it. Only files with names that this module gives are removed; any other file in the folder
stays.

One file is never removed: `lock`. The process that has locked it may publish shards and change the
ledger. It writes its name into the file, so that processes that wait can say for which one.
"""

import errno
import fcntl
import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from teacher_cache.errors import CacheError, UnexpectedFile, printable
from teacher_cache.storage.keys import LOCK_KEY, STAGING, is_workbench, require_claim
from teacher_cache.storage.tree import Tree

NAME_HOLDER_AFTER_S = 10.0
"""A process that waits for the lock so long, while one and the same process has it, warns."""
NAME_HOLDER_EVERY_S = 60.0
"""It warns again each time that it has waited so much longer."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """A file of the workbench that this process has locked until `release`."""

    tree: Tree
    name: str
    descriptor: int

    @property
    def key(self) -> str:
        """Where it lies, below the cache."""
        return f"{STAGING}/{self.name}"

    def release(self) -> None:
        """Remove the file, if it was not moved elsewhere, and unlock it."""
        try:
            self.tree.remove(self.key)
        finally:
            os.close(self.descriptor)


def claim(tree: Tree, name: str) -> Held | None:
    """Take a name for this process alone; None while another process has it.

    Raises:
        CacheError: this file system cannot lock files.
    """
    return _hold(tree, require_claim(name))


def stage(tree: Tree, data: bytes) -> Held:
    """Write a temporary file under a name of its own and flush it to disk.

    Raises:
        OSError: the disk is full or cannot be written; the file is removed.
    """
    while (temporary := _hold(tree, f"{secrets.token_hex(8)}.tmp")) is None:
        pass  # a sweep had locked the new file just then
    try:
        with os.fdopen(os.dup(temporary.descriptor), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        temporary.release()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(tree.root / temporary.key)  # so that the user sees which disk
        raise
    return temporary


@contextmanager
def publishing(tree: Tree) -> Iterator[None]:
    """Wait for the lock, which a process needs to move shards into place or change the ledger.

    Raises:
        CacheError: this file system cannot lock files.
    """
    with tree.made_folder((STAGING,)) as folder:
        descriptor = tree.open_file(LOCK_KEY, folder, "lock", os.O_RDWR | os.O_CREAT)
    try:
        if not _locked(tree.root, descriptor):
            _wait(tree.root, descriptor)
        # A process must be able to lock the cache on a full disk, if only to remove files from it.
        with suppress(OSError):
            _sign(descriptor)
        try:
            yield
        finally:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
            # Closing the file would not unlock it while a forked worker has a copy of the
            # descriptor.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def abandoned(tree: Tree) -> list[str]:
    """The keys of the files that killed writers left behind: no running process has locked them."""
    return [key for key in _workbench(tree) if _is_free(tree, key)]


def sweep(tree: Tree) -> None:
    """Remove the files that killed writers left behind; those of running writers stay."""
    for key in _workbench(tree):
        if (held := _hold_existing(tree, key)) is not None:
            held.release()


def _workbench(tree: Tree) -> list[str]:
    try:
        found = list(tree.walk(STAGING))
    except UnexpectedFile:  # `staging` is no folder, so nothing in it is ours
        return []
    return [
        key for key, entry in found if entry.is_file(follow_symlinks=False) and is_workbench(key)
    ]


def _hold(tree: Tree, name: str, *, made: int = os.O_CREAT) -> Held | None:
    """Take a file for this process alone; None while another process holds it."""
    open_folder = tree.made_folder if made else tree.folder
    with open_folder((STAGING,)) as folder:
        while True:
            # a lock over NFS wants a descriptor that may write
            descriptor = tree.open_file(f"{STAGING}/{name}", folder, name, os.O_RDWR | made)
            is_held = False
            try:
                is_locked = _locked(tree.root, descriptor)
                is_held = is_locked and _is_at(descriptor, name, folder)
            finally:
                if not is_held:
                    os.close(descriptor)
            if is_held or not is_locked:
                return Held(tree, name, descriptor) if is_held else None
            # Else another process removed the file after we opened it and before we locked it.


def _hold_existing(tree: Tree, key: str) -> Held | None:
    """Lock a file of the workbench; None if another process has locked it, or it is gone."""
    with suppress(OSError):
        return _hold(tree, key.removeprefix(f"{STAGING}/"), made=0)
    return None


def _is_free(tree: Tree, key: str) -> bool:
    held = _hold_existing(tree, key)
    if held is not None:
        os.close(held.descriptor)
    return held is not None


def _is_at(descriptor: int, name: str, folder: int) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        there = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def _locked(root: Path, descriptor: int) -> bool:
    """Lock a file, unless another process has; whether this one has the lock now."""
    try:
        _flock(root, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _flock(root: Path, descriptor: int, operation: int) -> None:
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        raise CacheError(
            f"{root}: this file system cannot lock files ({error.strerror}), so writers could hurt "
            "each other: mount it with locks (flock), or fill the cache in another folder and copy "
            "it there"
        ) from None


def _wait(root: Path, descriptor: int) -> None:
    """Wait for the lock in the kernel's own queue, while a thread watches which process has it."""
    done = threading.Event()
    watcher = threading.Thread(
        target=_name_holder, args=(root, descriptor, done), name="lock", daemon=True
    )
    watcher.start()
    try:
        _flock(root, descriptor, fcntl.LOCK_EX)
    finally:
        done.set()
        watcher.join()


def _name_holder(root: Path, descriptor: int, done: threading.Event) -> None:
    """Warn if one and the same process keeps the lock; a queue that moves needs no warning."""
    pause_s, before = NAME_HOLDER_AFTER_S, _signature(descriptor)
    while not done.wait(pause_s):
        holder = _signature(descriptor)
        pause_s = NAME_HOLDER_AFTER_S
        if holder == before:
            pause_s = NAME_HOLDER_EVERY_S
            _log.warning(
                "%s: still waiting for the lock of this cache, which is held by %s: if that was "
                "stopped, let it go on (kill -CONT) or end it; nothing committed is lost",
                root,
                holder or "a process that did not say its name",
            )
        before = holder


def _sign(descriptor: int) -> None:
    """Write into the lock's file which process has it.

    Of the command line only the program and its first argument are written: others may be secrets.
    """
    name = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]]) if sys.argv else "python"
    since = datetime.now(UTC).isoformat(timespec="microseconds")
    text = f"process {os.getpid()} ({name}) on {socket.gethostname()} since {since}"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(errors="replace")[:500], 0)


def _signature(descriptor: int) -> str:
    return printable(os.pread(descriptor, 500, 0).decode(errors="replace"))
