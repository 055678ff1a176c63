"""The ledger: one small JSON a committed block. What it does not name does not exist.

An entry lists the files of the block with sizes and CRC-32C, so that a reader trusts neither the
file system nor Zarr's reading of a missing shard as fill values, and who computed it. It carries a
CRC-32C of itself.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from teacher_cache.durable import sync_folder
from teacher_cache.errors import DamagedRecords
from teacher_cache.staging import stage


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


def commit_entry(root: Path, entry: LedgerEntry) -> bool:
    """Add an entry, durably, if its block has none; False when another writer was first."""
    path = entry_path(root, entry.block)
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent.parent)
    staged = stage(root, _encode(entry))
    try:
        os.link(staged.path, path)  # unlike a rename, a link fails where the name is taken
    except FileExistsError:
        return False
    finally:
        staged.release()
    sync_folder(path.parent)
    return True


def remove_entry(root: Path, block: BlockId) -> None:
    """Forget a block, durably: its rows count as never filled."""
    path = entry_path(root, block)
    path.unlink(missing_ok=True)
    sync_folder(path.parent)


def is_committed(root: Path, block: BlockId) -> bool:
    """Whether the ledger names the block."""
    return entry_path(root, block).exists()


def committed_blocks(root: Path) -> set[BlockId]:
    """Every block that the ledger names."""
    return {
        BlockId(int(folder.name), int(name.removesuffix(".json")))
        for folder in _view_folders(root)
        for name in (file.name for file in folder.iterdir())
        if name.endswith(".json") and not name.startswith(".")
    }


def read_entry(root: Path, block: BlockId) -> LedgerEntry | None:
    """The entry of a block, or None where it is not committed.

    Raises:
        DamagedRecords: an entry that is not what `commit_entry` wrote.
    """
    path = entry_path(root, block)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return _decode(data, block)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedRecords(
            f"ledger entry {path} is damaged ({error}): run `verify-cache {root} --repair`, then "
            "the same cache-teacher command, which computes just this block anew"
        ) from None


def _view_folders(root: Path) -> Iterator[Path]:
    ledger = root / "ledger"
    if ledger.is_dir():
        yield from (folder for folder in ledger.iterdir() if folder.name.isdigit())


def entry_path(root: Path, block: BlockId) -> Path:
    """Where the entry of a block lies."""
    return root / "ledger" / str(block.view) / f"{block.shard}.json"


def _encode(entry: LedgerEntry) -> bytes:
    document: dict[str, Any] = {
        "view": entry.block.view,
        "shard": entry.block.shard,
        "files": {f.path: {"size": f.size, "crc32c": f"{f.crc32c:08x}"} for f in entry.files},
        "absent_rows": list(entry.absent_rows),
        "producer": dict(entry.producer),
    }
    document["entry_crc32c"] = f"{crc32c_of(_canonical(document)):08x}"
    return json.dumps(document, indent=1).encode() + b"\n"


def _decode(data: bytes, block: BlockId) -> LedgerEntry:
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
