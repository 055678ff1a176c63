"""The sources of a cache: a CRC-32C of each row's encoded image, as the teacher read it.

The checksums of a shard of rows are committed before the first block of that shard, and every block
of the shard names their file by its SHA-256. So a replaced, re-encoded or exchanged image is found
when it is read, whatever the view. Rows whose bytes are no image are listed once a shard, and not
in every block.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from teacher_cache.errors import DamagedRecords, ImagesChanged, repair_advice
from teacher_cache.format.arrays import decode_shard, encode_shard, source_shard_key
from teacher_cache.format.descriptions import descriptions
from teacher_cache.format.layout import SOURCE_ARRAY, Layout
from teacher_cache.storage.ledger import (
    MOST_ENTRY_BYTES,
    BlockId,
    Owner,
    SourceEntry,
    StoredFile,
    decode_source,
    encode_source,
    numbers_in,
    source_key,
)
from teacher_cache.storage.place import Place

_LOOK_EVERY_S = 10.0
"""How long `differing` waits before it looks again for an entry that was not there."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceShard:
    """The images of one shard of rows."""

    rows: range
    crc: np.ndarray
    """uint32 [rows] CRC-32C of each encoded image."""
    absent_rows: frozenset[int]
    """Rows whose bytes are no image."""
    sha256: str
    """SHA-256 of the stored file of checksums, which every block of the shard names."""


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """The checksums of a cache's images. Each shard's are read when first needed, and then kept.

    Several threads may use it at the same time.
    """

    name: str
    """How errors name the cache."""
    place: Place
    layout: Layout
    owner: Owner
    _known: dict[int, SourceShard] = field(default_factory=dict)
    _looked: dict[int, float] = field(default_factory=dict)
    """Shard -> when its missing entry was last looked for, by the monotonic clock."""
    _lock: Lock = field(default_factory=Lock)

    def of(self, shard: int) -> SourceShard | None:
        """The images of one shard; None if no source entry names them yet.

        Raises:
            DamagedRecords: the entry or its file is damaged or belongs to another cache, or the
            file
                is missing.
        """
        with self._lock:
            if shard not in self._known and (found := self._read(shard)) is not None:
                self._known[shard] = found
            return self._known.get(shard)

    def committed_shards(self) -> list[int]:
        """The shards that have a source entry, in ascending order."""
        found = numbers_in(self.place.keys("ledger/source"), "source")
        return sorted(shard for shard in found if shard < self.layout.shards)

    def absent_rows(self) -> frozenset[int]:
        """The rows whose bytes are no image, according to the source entries that there are now."""
        shards = [self.of(shard) for shard in self.committed_shards()]
        return frozenset(row for shard in shards if shard for row in shard.absent_rows)

    def differing(self, rows: np.ndarray, crc: np.ndarray) -> list[int]:
        """Those of some rows whose images are not the ones that the teacher read.

        Rows of a shard without a source entry are not among them: there is nothing to compare with.

        Args:
            rows: int64 [B].
            crc: uint32 [B] CRC-32C of each row's encoded image as it was read just now.
        """
        found: list[int] = []
        shards = rows // self.layout.rows_per_shard
        for shard in np.unique(shards).tolist():
            known = self._seen(shard)
            if known is not None:
                own = shards == shard
                differs = known.crc[rows[own] - known.rows.start] != crc[own]
                found += rows[own][differs].tolist()
        return sorted(found)

    def commit(
        self,
        shard: int,
        crc: np.ndarray,
        absent_rows: frozenset[int],
        producer: Mapping[str, str],
    ) -> SourceShard:
        """Commit the checksums of a shard's images, or compare them with the committed ones.

        Args:
            shard: its number.
            crc: uint32 [rows] CRC-32C of each encoded image.
            absent_rows: rows whose bytes are no image.
            producer: the process that read them, for the entry.

        Raises:
            ImagesChanged: other bytes are committed, perhaps by another writer.
            OSError, StoreError: a file cannot be written; nothing is committed then.
        """
        if (known := self.of(shard)) is None:
            file, data = self.file_of(shard, crc)
            entry = SourceEntry(self.owner, shard, file, tuple(sorted(absent_rows)), producer)
            self.place.publish(source_key(shard), encode_source(entry), {file.key: data})
            known = self.of(shard)  # it may be another writer's, and is compared below
            assert known is not None, "an entry that was published can be read"
        self.require(known, crc, absent_rows)
        return known

    def file_of(self, shard: int, crc: np.ndarray) -> tuple[StoredFile, bytes]:
        """The file of a shard's checksums, whose bytes depend on nothing but the checksums.

        Args:
            shard: its number.
            crc: uint32 [rows] CRC-32C of each encoded image.
        """
        description = descriptions(self.layout, 0)[SOURCE_ARRAY]
        rows, key = self.layout.rows_of(shard), source_shard_key(shard)
        data = encode_shard(description, SOURCE_ARRAY, BlockId(0, shard), rows, crc)
        return StoredFile.of(key, data), data

    def require(self, known: SourceShard, crc: np.ndarray, absent_rows: frozenset[int]) -> None:
        """Refuse images that are not those that a shard's entry names.

        Raises:
            ImagesChanged: some images differ; the message says how many, and names the first.
        """
        rows = set((np.flatnonzero(known.crc != crc) + known.rows.start).tolist())
        rows |= known.absent_rows ^ absent_rows  # rows that are absent in one of the two only
        if rows:
            raise ImagesChanged(
                f"{self.name}: {len(rows)} images of rows {known.rows.start}-"
                f"{known.rows.stop - 1} (first: row {min(rows)}) are not those that the teacher "
                "read before: restore the images that the cache was begun with, or fill a new "
                "cache with another --out"
            )

    def _seen(self, shard: int) -> SourceShard | None:
        """As `of`, but a missing entry is not looked for at every batch, since a store is slow."""
        if shard not in self._known:
            if time.monotonic() - self._looked.get(shard, -math.inf) < _LOOK_EVERY_S:
                return None
            self._looked[shard] = time.monotonic()
        return self.of(shard)

    def _read(self, shard: int) -> SourceShard | None:
        entry = read_source_entry(self.name, self.place, self.owner, shard)
        if entry is None:
            return None
        data = self.place.read(entry.file.key, at_most=self.layout.most_bytes(SOURCE_ARRAY))
        if damage := entry.file.damage(data):
            raise DamagedRecords(
                f"{self.name}/{entry.file.key} {damage}: {repair_advice(self.name)}"
            )
        rows = self.layout.rows_of(shard)
        chunks = -(-len(rows) // self.layout.chunk_rows)
        padded = np.zeros((chunks * self.layout.chunk_rows, 1), "<u4")
        try:
            decode_shard(SOURCE_ARRAY, 0, data or b"", self.layout, padded)
        except ValueError as error:
            raise DamagedRecords(
                f"{self.name}/{entry.file.key} cannot be decoded ({error}): "
                f"{repair_advice(self.name)}"
            ) from error
        absent = frozenset(entry.absent_rows)
        return SourceShard(rows, padded[: len(rows), 0], absent, entry.file.sha256)


def read_source_entry(name: str, place: Place, owner: Owner, shard: int) -> SourceEntry | None:
    """The source entry of a shard; None if there is none.

    Raises:
        DamagedRecords: the entry is damaged, or belongs to another cache.
    """
    key = source_key(shard)
    data = place.read(key, at_most=MOST_ENTRY_BYTES)
    if data is None:
        return None
    try:
        entry = decode_source(data, shard)
        if entry.file.key != source_shard_key(shard):
            raise ValueError("it names another file than that of its shard")  # noqa: TRY301
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedRecords(f"{name}/{key} is damaged ({error}): {repair_advice(name)}") from None
    if entry.owner != owner:
        raise DamagedRecords(f"{name}/{key} belongs to another cache: {repair_advice(name)}")
    return entry
