"""The ledger: one small JSON file for everything that exists in a cache besides its manifest.

What the ledger does not name does not exist. There are four kinds of entries:

    ledger/<view>/<shard>.json     a block: the records of one shard of rows in one view
    ledger/source/<shard>.json     what the teacher read: the CRC-32C of each image, absent rows
    ledger/views/<count>.json      views were appended, so that the cache has <count> of them
    ledger/sample.json             what the teacher said of a sample before the first block

Every entry names the cache it belongs to, by the cache's random id and the digest of its manifest,
and ends in a SHA-256 of itself. An entry that names files gives the size and the SHA-256 of each:
a checksum such as CRC-32C would not do, because a shard ends every chunk in its own CRC-32C, and
the CRC-32C of data that ends in its own CRC-32C depends on the data's length alone.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from teacher_cache.bounded_json import read_object
from teacher_cache.errors import shortened

MOST_ENTRY_BYTES = 64 << 20
"""The largest entry: a source entry may list every row of its shard as absent."""

MOST_FILE_BYTES = 1 << 50
"""The largest size that an entry may state for a file."""


@dataclass(frozen=True, slots=True, order=True)
class BlockId:
    """Rows [shard * S, (shard + 1) * S) of one view."""

    view: int
    shard: int


@dataclass(frozen=True, slots=True)
class Owner:
    """Which cache an entry belongs to."""

    cache_id: str
    """The random id in the cache's manifest."""
    manifest_sha256: str
    """The digest of that manifest."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file that an entry names: its key, how many bytes it has, and their SHA-256."""

    key: str
    size: int
    sha256: str

    @classmethod
    def of(cls, key: str, data: bytes) -> "StoredFile":
        """The file of a key that holds these bytes."""
        return cls(key, len(data), sha256_of(data))

    def damage(self, data: bytes | None) -> str | None:
        """What is wrong with the bytes that were read; None if nothing is.

        Args:
            data: the bytes; None where the file is missing.
        """
        if data is None:
            return "is missing"
        if len(data) != self.size:
            return f"has {len(data)} bytes, {self.size} were committed"
        return None if sha256_of(data) == self.sha256 else "is not what was committed"


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """What was committed for one block."""

    owner: Owner
    block: BlockId
    files: tuple[StoredFile, ...]
    source_sha256: str
    """SHA-256 of the shard's file of image checksums: of which images the records are."""
    producer: Mapping[str, str]
    """Device model, library versions and host of the process that computed the records."""
    tables: Mapping[str, str]
    """SHA-256 of every file besides the manifest that is needed to decode the records."""


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """Which images the rows of one shard are."""

    owner: Owner
    shard: int
    file: StoredFile
    absent_rows: tuple[int, ...]
    """Rows whose bytes are no image; their records are fill values and are never used."""
    producer: Mapping[str, str]


def sha256_of(data: bytes) -> str:
    """SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def block_key(block: BlockId) -> str:
    """Where the entry of a block lies, below the cache."""
    return f"ledger/{block.view}/{block.shard}.json"


def source_key(shard: int) -> str:
    """Where the entry of a shard's images lies, below the cache."""
    return f"ledger/source/{shard}.json"


def views_key(count: int) -> str:
    """Where the entry lies which says that the cache has so many views."""
    return f"ledger/views/{count}.json"


SAMPLE_KEY = "ledger/sample.json"


def blocks_in(keys: Iterable[str]) -> set[BlockId]:
    """The blocks whose entries are among some keys."""
    found = set()
    for key in keys:  # which may be keys of other entries, too, and of strangers' files
        match key.split("/"):
            case ("ledger", view, name) if is_number(view) and name.endswith(".json"):
                shard = name.removesuffix(".json")
                if is_number(shard):
                    found.add(BlockId(int(view), int(shard)))
    return found


def numbers_in(keys: Iterable[str], folder: str) -> set[int]:
    """The numbers of `ledger/<folder>/<number>.json` among some keys."""
    names = (
        key.removeprefix(f"ledger/{folder}/").removesuffix(".json")
        for key in keys
        if key.startswith(f"ledger/{folder}/") and key.endswith(".json")
    )
    return {int(name) for name in names if is_number(name)}


def is_number(text: str) -> bool:
    """Whether a text is a whole number from 0 on, as the format writes them: no leading zeros."""
    return text.isascii() and text.isdigit() and len(text) < 10 and str(int(text)) == text


def seal(kind: str, owner: Owner, content: Mapping[str, Any]) -> bytes:
    """The bytes of an entry of any kind, which end in a SHA-256 of the entry itself."""
    document: dict[str, Any] = {
        "kind": kind,
        "cache": owner.cache_id,
        "manifest": owner.manifest_sha256,
        **content,
    }
    document["entry_sha256"] = sha256_of(_canonical(document))
    return json.dumps(document, indent=1).encode() + b"\n"


def unseal(data: bytes, kind: str) -> tuple[Owner, dict[str, Any]]:
    """The inverse of `seal`: the cache that the entry belongs to, and its content.

    Raises:
        ValueError, KeyError, TypeError: the bytes are no undamaged entry of this kind.
    """
    document = read_object(data, at_most=MOST_ENTRY_BYTES)
    stated = document.pop("entry_sha256")
    if sha256_of(_canonical(document)) != stated:
        raise ValueError("its own SHA-256 does not match")
    if (found := document.pop("kind")) != kind:
        raise ValueError(f"it is an entry of the kind {shortened(found)}, not {kind!r}")
    owner = Owner(_text(document.pop("cache")), _text(document.pop("manifest")))
    return owner, document


def encode_block(entry: BlockEntry) -> bytes:
    """The bytes of a block's entry."""
    content = {
        "view": entry.block.view,
        "shard": entry.block.shard,
        "files": _files_document(entry.files),
        "source": entry.source_sha256,
        "tables": dict(entry.tables),
        "producer": dict(entry.producer),
    }
    return seal("block", entry.owner, content)


def decode_block(data: bytes, block: BlockId) -> BlockEntry:
    """The inverse of `encode_block`.

    Raises:
        ValueError, KeyError, TypeError: the bytes are no undamaged entry of this block.
    """
    owner, document = unseal(data, "block")
    if (document["view"], document["shard"]) != (block.view, block.shard):
        raise ValueError(
            f"it speaks of view {shortened(document['view'])}, shard {shortened(document['shard'])}"
        )
    return BlockEntry(
        owner,
        block,
        _files_of(document),
        _text(document["source"]),
        _texts(document["producer"]),
        _texts(document["tables"]),
    )


def encode_source(entry: SourceEntry) -> bytes:
    """The bytes of a source entry."""
    content = {
        "shard": entry.shard,
        "files": _files_document((entry.file,)),
        "absent_rows": list(entry.absent_rows),
        "producer": dict(entry.producer),
    }
    return seal("source", entry.owner, content)


def decode_source(data: bytes, shard: int) -> SourceEntry:
    """The inverse of `encode_source`.

    Raises:
        ValueError, KeyError, TypeError: the bytes are no undamaged entry of this shard.
    """
    owner, document = unseal(data, "source")
    if document["shard"] != shard:
        raise ValueError(f"it speaks of shard {shortened(document['shard'])}")
    (file,) = _files_of(document)
    absent = document["absent_rows"]
    if not isinstance(absent, list) or not all(type(row) is int and row >= 0 for row in absent):
        raise TypeError("its absent rows are no list of row numbers")
    return SourceEntry(owner, shard, file, tuple(absent), _texts(document["producer"]))


def named_files(data: bytes) -> tuple[StoredFile, ...]:
    """The files that an entry of a block or of a shard's images names.

    Raises:
        ValueError, KeyError, TypeError: the bytes are no undamaged entry of either kind.
    """
    document = read_object(data, at_most=MOST_ENTRY_BYTES)
    return _files_of(unseal(data, "source" if document.get("kind") == "source" else "block")[1])


def _files_document(files: Iterable[StoredFile]) -> dict[str, Any]:
    return {file.key: {"size": file.size, "sha256": file.sha256} for file in files}


def _files_of(document: Mapping[str, Any]) -> tuple[StoredFile, ...]:
    files = document["files"]
    if not isinstance(files, dict):
        raise TypeError("its files are no JSON object")
    found = []
    for key, file in files.items():
        size = file["size"]
        # not isinstance: JSON's true is a bool, which Python counts as an int
        if type(size) is not int or not 0 <= size <= MOST_FILE_BYTES:
            raise TypeError(f"the size of {shortened(key)} is no number of bytes")
        found.append(StoredFile(key, size, _text(file["sha256"])))
    return tuple(found)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"it holds {type(value).__name__}, where text is expected")
    return value


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError(f"it holds {type(value).__name__}, where a JSON object is expected")
    return {name: _text(text) for name, text in value.items()}


def _canonical(document: Mapping[str, Any]) -> bytes:
    """One spelling of a document, so that its digest does not depend on order or white space."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
