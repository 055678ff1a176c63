"""Who holds what in an object store, where no kernel knows: writers that show that they live.

A writer keeps one object, `staging/writers/<name>`, and writes it anew every few seconds; a tile is
claimed by an object that names its writer. A writer whose object is older than LEASE_S is dead. On
the writer's own host a locked file tells at once. Claims only save work: two writers of one block
do no harm (bucket.py), so neither do wrong clocks nor a writer that was stopped for a while.
"""

import fcntl
import os
import secrets
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from teacher_cache.errors import StoreError
from teacher_cache.storage.keys import STAGING, is_workbench, require_claim
from teacher_cache.storage.objects import Objects

HEARTBEAT_S = 5.0
LEASE_S = 30.0

_BODY = b"a writer of this cache, while it lives"
_OVERWRITES = (
    "{url}: this store overwrites what it was told not to (it ignores If-None-Match), so writers "
    "could hurt each other: use a store with conditional writes, or fill the cache in a folder and "
    "copy it there"
)


@dataclass(slots=True, eq=False)
class Writer:
    """This process as a writer; it exists in the store while it holds a claim."""

    objects: Objects
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    held: set[str] = field(default_factory=set)
    released: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    beating: "tuple[threading.Thread, threading.Event] | None" = None
    descriptor: int | None = None

    @property
    def hasty(self) -> Objects:
        """For what need not succeed: a store that fails shall not hold up the end of a job."""
        return replace(self.objects, patience_s=min(self.objects.patience_s, HEARTBEAT_S))

    def claim(self, name: str) -> "HeldObject | None":
        """Take a name; None while another living writer, or this one, holds it."""
        key = f"{STAGING}/{require_claim(name)}"
        with self.lock:
            if key in self.held:
                return None
            self._appear()
            if not self._create(key):
                self._disappear_if_idle()
                return None
            self.held.add(key)
            self.released.discard(key)
        return HeldObject(self, key)

    def release(self, key: str) -> None:
        """Let go of a claim; with the last one the writer's own object goes, too."""
        with self.lock:
            if key not in self.held:
                return
            self.held.discard(key)
            self.released.add(key)
            self._take_released_away()
            self._disappear_if_idle()

    def _take_released_away(self) -> None:
        """Also those that the store did not take back before; the last are left to a sweep."""
        with suppress(StoreError):
            for key in sorted(self.released):
                found = self.hasty.get(key)
                if found is not None and found[0] == self.name.encode():  # it may have been taken
                    self.hasty.delete(key)
                self.released.discard(key)

    def now(self) -> datetime:
        """The store's clock where this writer has an object of its own there, else the host's."""
        own = self.objects.head(_writer_key(self.name)) if self.beating else None
        return own.modified if own else datetime.now(UTC)

    def _create(self, key: str) -> bool:
        mine = self.name.encode()
        if self.objects.create(key, mine):
            return True
        found = self.objects.get(key)
        if found is not None:
            if is_alive(self.objects, found[0].decode(errors="replace"), self.now):
                return False
            self.objects.delete(key)
        return self.objects.create(key, mine)

    def _appear(self) -> None:
        if self.beating is not None:
            return
        path, key = _lock_path(self.name), _writer_key(self.name)
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        try:
            self._show(key)
        except StoreError:
            self._let_go()
            raise
        stopped = threading.Event()
        beat = (self.hasty, key, stopped)
        thread = threading.Thread(target=_beat, args=beat, name="lease", daemon=True)
        thread.start()
        self.beating = (thread, stopped)

    def _show(self, key: str) -> None:
        self.objects.create(key, _BODY)
        if self.objects.create(key, b"another's"):
            raise StoreError(_OVERWRITES.format(url=self.objects.url))

    def _disappear_if_idle(self) -> None:
        if self.held or self.beating is None:
            return
        thread, stopped = self.beating
        self.beating = None
        stopped.set()
        thread.join(HEARTBEAT_S)
        try:
            self.hasty.delete(_writer_key(self.name))
        except StoreError:
            self._unlock()  # an unlocked file tells this host that the object is a dead writer's
        else:
            self._let_go()

    def _let_go(self) -> None:
        _lock_path(self.name).unlink(missing_ok=True)
        self._unlock()

    def _unlock(self) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


@dataclass(frozen=True, slots=True)
class HeldObject:
    """A claim of this process."""

    writer: Writer
    key: str

    def release(self) -> None:
        """Let go of it."""
        self.writer.release(self.key)


def dead_keys(objects: Objects, writer: Writer) -> list[str]:
    """The claims and the objects of writers that have ended; what others put there is not ours."""
    found = [stored.key for stored in objects.list(STAGING) if is_workbench(stored.key)]
    alive: dict[str, bool] = {}

    def lives(name: str) -> bool:
        if name not in alive:
            alive[name] = is_alive(objects, name, writer.now)
        return alive[name]

    dead = []
    for key in found:
        if key.startswith(f"{STAGING}/writers/"):
            name = key.rpartition("/")[2]
        else:
            body = objects.get(key)
            name = body[0].decode(errors="replace") if body else ""
        if not lives(name):
            dead.append(key)
    return dead


def is_alive(objects: Objects, name: str, now: Callable[[], datetime]) -> bool:
    """Whether a writer still runs, as far as one can know."""
    if not (len(name) == 16 and name.isalnum()):
        return False
    on_this_host = _is_locked(_lock_path(name))
    if on_this_host is not None:
        return on_this_host
    stored = objects.head(_writer_key(name))
    return stored is not None and (now() - stored.modified).total_seconds() < LEASE_S


def _beat(objects: Objects, key: str, stopped: threading.Event) -> None:
    while not stopped.wait(HEARTBEAT_S):
        with suppress(StoreError):  # the job itself will meet the store, and say so
            objects.put(key, _BODY)
            if stopped.is_set():
                objects.delete(key)


def _writer_key(name: str) -> str:
    return f"{STAGING}/writers/{name}"


def _lock_path(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"retort-writer-{name}"


def _is_locked(path: Path) -> bool | None:
    """Whether a process of this host holds the file; None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(descriptor)
