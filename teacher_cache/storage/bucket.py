"""A cache in an object store: atomic objects, put-if-absent, and no locks.

How writers who cannot lock each other out stay harmless: `Bucket.publish`.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import override

from teacher_cache.errors import CacheError, DamagedRecords, StoreError, repair_advice
from teacher_cache.parallel_map import mapped_ahead
from teacher_cache.storage import lease
from teacher_cache.storage.keys import MANIFEST, QUARANTINE, is_remnant, no_cache, parts_of
from teacher_cache.storage.ledger import MOST_ENTRY_BYTES, StoredFile, named_files
from teacher_cache.storage.objects import Objects, open_objects
from teacher_cache.storage.place import Place

AT_ONCE = 16
"""Requests in flight: one answer takes tens of milliseconds, a slab has hundreds of them."""
GRACE_S = 5.0
"""A living writer that has put a block's first file commits within this, as a rule."""
ROUNDS = 5
_LOOKS = 10

Item = TypeVar("Item")
Result = TypeVar("Result")


def open_bucket(url: str) -> "Bucket":
    """The place below a URL; nothing is asked of the store yet.

    Raises:
        LocationError, StoreError: as `open_objects`.
    """
    return Bucket(open_objects(url))


@dataclass(frozen=True, slots=True, eq=False)
class Bucket(Place):
    """A `Place` below a URL; `Place` says what each method does."""

    objects: Objects
    grace_s: float = GRACE_S

    def __str__(self) -> str:
        return self.objects.url

    @override
    def read(self, key: str, at_most: int | None = None) -> bytes | None:
        found = self.objects.get(_checked(key), at_most)
        return None if found is None else found[0]

    @override
    def exists(self, key: str) -> bool:
        return self.objects.head(_checked(key)) is not None

    @override
    def keys(self, below: str = "") -> Iterator[str]:
        return (stored.key for stored in self.objects.list(below))

    @override
    def path_of(self, key: str) -> Path | None:
        """No object has a path."""
        return None

    @override
    def total_bytes(self) -> int:
        return sum(stored.size for stored in self.objects.list())

    @override
    def add(self, key: str, data: bytes) -> bool:
        return self.objects.create(_checked(key), data)

    @override
    def replace(self, key: str, data: bytes) -> None:
        self.objects.put(_checked(key), data)

    @override
    def remove(self, key: str) -> None:
        self.objects.delete(_checked(key))

    @override
    def create(self, files: Mapping[str, bytes]) -> None:
        """Everything else first, `zarr.json` last and if absent: without it there is no cache."""
        if self.exists(MANIFEST):
            return
        others = [key for key in self.keys() if not is_remnant(key, files)]
        if others and not self.exists(MANIFEST):
            raise no_cache(str(self), others)
        rest = {key: data for key, data in files.items() if key != MANIFEST}
        for key in self._foreign(rest):
            if self.exists(MANIFEST):
                return
            self.replace(key, rest[key])
        if self.add(MANIFEST, files[MANIFEST]) and self._tags(rest) is None:
            raise CacheError(
                f"{self}: another process creates another cache there: choose another --out, or "
                "empty it"
            )

    @override
    def publish(self, entry_key: str, entry: bytes, files: Mapping[str, bytes]) -> bool:
        """Put each file if absent, read all back, name them if unnamed, look again.

        A record depends on the recipe and the device model, so two writers of a block on the same
        model put the same bits, and neither can hurt the other. Only where other bits are met, and
        the ledger does not name them after a while, are they replaced: a killed writer of another
        device model left them. Should that writer still live, or two meet like this, either the
        reading back, or the look after the commit, or the loser's look at the winner's files finds
        it: whose entry is not true takes it away and starts over. What even these miss (a request
        that the network held back for longer) readers refuse, and verify-cache finds. It is bytes
        that are compared: a shard ends in its own checksums, so a checksum of it tells nothing.

        Raises:
            DamagedRecords: the block that another writer committed is not whole.
            StoreError: the store refuses or is silent; or others replace this block all the time.
        """
        mine = named_files(entry)
        for round_ in range(ROUNDS):
            if (standing := self.read(entry_key, MOST_ENTRY_BYTES)) is not None:
                if round_ == 0 or self._is_whole(entry_key, standing, mine):
                    return standing == entry
                continue
            if foreign := self._foreign(files):
                if self._appears(entry_key, within_s=self.grace_s * 2**round_):
                    continue
                for key in foreign:
                    self.replace(key, files[key])
            tags = self._tags(files)
            if tags is None or not self.add(entry_key, entry):
                continue
            if self._tags(files) == tags:
                return True
            self.remove(entry_key)
        raise StoreError(
            f"{self}/{entry_key}: other writers replaced this block's files {ROUNDS} times: fill "
            "one cache from one device model at a time, or wait for the others"
        )

    @override
    def quarantine(self, keys: Iterable[str], folder: str) -> None:
        def set_aside(key: str) -> None:
            to = _checked(f"{QUARANTINE}/{folder}/{key}")
            numbered = (to if number == 0 else f"{to}.{number}" for number in count())
            if self.objects.copy(key, next(name for name in numbered if not self.exists(name))):
                self.remove(key)

        for _ in self.in_order(set_aside, keys):
            pass

    @override
    def withdraw(self, entry_key: str, file_keys: Iterable[str], folder: str) -> None:
        """Files first: while the ledger names the block, no writer puts it anew in between."""
        self.quarantine(file_keys, folder)
        self.quarantine([entry_key], folder)

    @override
    def alone(self) -> AbstractContextManager[None]:
        """No store locks; `publish` looks again after it has committed."""
        return nullcontext()

    @override
    def claim(self, name: str) -> lease.HeldObject | None:
        return lease.claim(self.objects, name)

    @override
    def claims_outlive_s(self) -> float:
        return lease.LEASE_S + lease.HEARTBEAT_S

    @override
    def look_every_s(self) -> float:
        return 2.0

    @override
    def abandoned(self) -> list[str]:
        return lease.dead_keys(self.objects)

    @override
    def sweep(self) -> None:
        """Whoever is to write begins with it, so here the store is asked what it can."""
        lease.require_conditional_writes(self.objects)
        for key in self.abandoned():
            self.remove(key)

    @override
    def in_order(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result]:
        return mapped_ahead(function, items, threads=AT_ONCE, name="store")

    @override
    def arrays(self) -> Any:
        """Zarr's own store over obstore; what it reads whole is asked for as patiently as ours."""
        from zarr.storage import ObjectStore

        bucket = self

        class Patient(ObjectStore):  # type: ignore[type-arg]
            async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
                if byte_range is not None:
                    return await super().get(key, prototype, byte_range)
                data = await asyncio.to_thread(bucket.read, key)
                return None if data is None else prototype.buffer.from_bytes(data)

        return Patient(self.objects.client, read_only=True)

    def _foreign(self, files: Mapping[str, bytes]) -> list[str]:
        """Put each file if absent; the keys at which other bytes lie."""
        mine = self.in_order(lambda item: self.add(*item), files.items())
        return [key for key, ok in zip(files, mine, strict=True) if not ok]

    def _tags(self, files: Mapping[str, bytes]) -> list[str] | None:
        """The tags of the stored files, read back; None if any is not what it should be."""
        found = list(self.in_order(self.objects.get, files))
        if any(f is None or f[0] != data for f, data in zip(found, files.values(), strict=True)):
            return None
        return [f[1] for f in found if f is not None]

    def _appears(self, key: str, *, within_s: float) -> bool:
        """Whether an object comes to be meanwhile; of two that wait, one waits longer.

        Looks are counted, not seconds: in an outage nobody could have committed.
        """
        pause_s = within_s / _LOOKS * random.uniform(1, 2)
        for _ in range(_LOOKS):
            if self.exists(key):
                return True
            time.sleep(pause_s)
        return self.exists(key)

    def _is_whole(self, entry_key: str, standing: bytes, mine: Sequence[StoredFile]) -> bool:
        """Whether what another's entry names is there, after this writer has put files, too.

        False if the entry is gone meanwhile: its writer saw that it is not true.
        """
        try:
            theirs = named_files(standing)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedRecords(
                f"{self}/{entry_key} is damaged ({error}): {repair_advice(self)}"
            ) from None
        if set(theirs) == set(mine):
            return True
        for _ in range(_LOOKS):  # looks are counted, not seconds: see _appears
            found = self.in_order(self.read, [file.key for file in theirs])
            if not any(file.damage(data) for file, data in zip(theirs, found, strict=True)):
                return True
            time.sleep(2 * self.grace_s / _LOOKS)
            if self.read(entry_key) != standing:
                return False
        raise DamagedRecords(
            f"{self}/{entry_key}: two writers of different device models met, and the files are "
            f"not what the ledger names: {repair_advice(self)}"
        )


def _checked(key: str) -> str:
    parts_of(key)
    return key
