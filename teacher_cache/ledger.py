"""The ledger: one small JSON a committed block. What it does not name does not exist.

An entry lists the files of the block with sizes and CRC-32C, so that a reader trusts neither the
file system nor Zarr's reading of a missing shard as fill values, and who computed it. It carries a
CRC-32C of itself.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import google_crc32c

from teacher_cache.errors import DamagedRecords
from teacher_cache.place import Root, place_of


@dataclass(frozen=True, slots=True, order=True)
class BlockId:
    """Rows [shard * S, (shard + 1) * S) of one view."""

    view: int
    shard: int


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a block: its path below the cache, its bytes' count and checksum."""

    path: str
    size: int
    crc32c: int


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What was committed for one block."""

    block: BlockId
    files: tuple[StoredFile, ...]
    absent_rows: tuple[int, ...]
    """Rows whose image could not be read; their records are fill values and never used."""
    producer: Mapping[str, str]
    """Device model, library versions, host: who computed the records."""


def crc32c_of(data: bytes) -> int:
    """CRC-32C (Castagnoli) of some bytes."""
    return int(google_crc32c.value(data))


def entry_key(block: BlockId) -> str:
    """Where the entry of a block lies, below the cache."""
    return f"ledger/{block.view}/{block.shard}.json"


def is_committed(root: Root, block: BlockId) -> bool:
    """Whether the ledger names the block."""
    return place_of(root).exists(entry_key(block))


def committed_blocks(root: Root) -> set[BlockId]:
    """Every block that the ledger names."""
    found = set()
    for key in place_of(root).keys("ledger"):
        _, _, place = key.partition("/")
        view, _, shard = place.removesuffix(".json").partition("/")
        if view.isdigit() and shard.isdigit() and key.endswith(".json"):
            found.add(BlockId(int(view), int(shard)))
    return found


def read_entry(root: Root, block: BlockId) -> LedgerEntry | None:
    """The entry of a block, or None where it is not committed.

    Raises:
        DamagedRecords: an entry that is not what `encode_entry` made.
    """
    data = place_of(root).read(entry_key(block))
    if data is None:
        return None
    try:
        return decode_entry(data, block)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedRecords(
            f"ledger entry {root}/{entry_key(block)} is damaged ({error}): run `verify-cache "
            f"{root} --repair`, then the same cache-teacher command, which computes just this "
            "block anew"
        ) from None


def encode_entry(entry: LedgerEntry) -> bytes:
    """The bytes of an entry, with their own checksum."""
    document: dict[str, Any] = {
        "view": entry.block.view,
        "shard": entry.block.shard,
        "files": {f.path: {"size": f.size, "crc32c": f"{f.crc32c:08x}"} for f in entry.files},
        "absent_rows": list(entry.absent_rows),
        "producer": dict(entry.producer),
    }
    document["entry_crc32c"] = f"{crc32c_of(_canonical(document)):08x}"
    return json.dumps(document, indent=1).encode() + b"\n"


def decode_entry(data: bytes, block: BlockId) -> LedgerEntry:
    """The inverse of `encode_entry`.

    Raises:
        ValueError, KeyError, TypeError: they are not the bytes of this block's entry.
    """
    document = json.loads(data)
    if not isinstance(document, dict):
        raise TypeError("it is no JSON object")
    stated = document.pop("entry_crc32c")
    if f"{crc32c_of(_canonical(document)):08x}" != stated:
        raise ValueError("its own checksum does not match")
    if (document["view"], document["shard"]) != (block.view, block.shard):
        raise ValueError(f"it speaks of view {document['view']}, shard {document['shard']}")
    files = tuple(
        StoredFile(path, int(f["size"]), int(f["crc32c"], 16))
        for path, f in document["files"].items()
    )
    return LedgerEntry(block, files, tuple(document["absent_rows"]), document["producer"])


def _canonical(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
