"""Who holds what in an object store, where no kernel knows: objects that are written anew.

A claim is an object that its holder puts if absent and then again every HEARTBEAT_S. One that is
LEASE_S old belongs to the dead, and anybody takes it; all times are the store's own. Claims only
save work: two writers of one block do no harm (bucket.py), so neither does one that was stopped.
"""

import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from teacher_cache.errors import StoreError
from teacher_cache.storage.keys import STAGING, is_workbench, require_claim
from teacher_cache.storage.objects import Objects

HEARTBEAT_S = 5.0
LEASE_S = 30.0


@dataclass(slots=True, eq=False)
class HeldObject:
    """A claim of this process, which a thread keeps young until `release`."""

    objects: Objects
    key: str
    owner: bytes
    released: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self.thread.start()

    def release(self) -> None:
        """Let go of it; one that the store does not take back grows old."""
        self.released.set()
        self.thread.join()
        with suppress(StoreError):
            found = self.objects.get(self.key)
            if found is not None and found[0] == self.owner:  # it may have been taken
                self.objects.delete(self.key)

    def _beat(self) -> None:
        while not self.released.wait(HEARTBEAT_S):
            with suppress(StoreError):  # the job itself will meet the store, and say so
                self.objects.put(self.key, self.owner)


def claim(objects: Objects, name: str) -> HeldObject | None:
    """Take a name; None while another living writer, or this one, holds it."""
    key, owner = f"{STAGING}/{require_claim(name)}", secrets.token_hex(8).encode()
    if not objects.create(key, owner):
        if key not in dead_keys(objects):
            return None
        objects.put(key, owner)
    return HeldObject(_hasty(objects), key, owner)


def dead_keys(objects: Objects) -> list[str]:
    """What lies in the workbench for LEASE_S; what others than writers put there is not ours."""
    if not _workbench(objects):  # so that a reader of a cache at rest writes nothing
        return []
    clock = _temporary()
    with suppress(StoreError):  # who may only read has the time of the youngest claim
        _hasty(objects).put(clock, b"what time is it?")
    found = _workbench(objects)
    with suppress(StoreError):
        _hasty(objects).delete(clock)
    now, lease = max(found.values(), default=datetime.min), timedelta(seconds=LEASE_S)
    return [key for key, at in found.items() if now - at >= lease and key != clock]


def require_conditional_writes(objects: Objects) -> None:
    """Ask the store to overwrite what it is told not to.

    Raises:
        StoreError: it does, so writers could hurt each other.
    """
    key = _temporary()
    # three, since an outage may last until a sweep takes the first
    overwrites = all(objects.create(key, bytes([number])) for number in range(3))
    objects.delete(key)
    if overwrites:
        raise StoreError(
            f"{objects.url}: this store overwrites what it was told not to (it ignores "
            "If-None-Match), so writers could hurt each other: use a store with conditional "
            "writes, or fill the cache in a folder and copy it there"
        )


def _workbench(objects: Objects) -> dict[str, datetime]:
    return {each.key: each.modified for each in objects.list(STAGING) if is_workbench(each.key)}


def _hasty(objects: Objects) -> Objects:
    """For what need not succeed: a store that fails shall not hold up the end of a job."""
    return replace(objects, patience_s=min(objects.patience_s, HEARTBEAT_S))


def _temporary() -> str:
    return f"{STAGING}/{secrets.token_hex(8)}.tmp"
