"""Seeded mutations of a cache's files: what a disk, a user or a stranger may do to them."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import google_crc32c
from files import odd_file

from teacher_cache.recipes.document import digest_of
from teacher_cache.storage.ledger import sha256_of

SENSELESS = (
    None, True, 0, -1, 1, 2, 3, 31, 33, 4096, 2**31 - 1, 2**31, 2**63,
    10**400, -(10**400), 0.5, 1e308, -1e308,
    "", "0", "x" * 100_000, "\x1b[2J", "\ud800", "../../etc/passwd", "/etc/passwd", "a\0b",
    [], {}, [[]], [0], [-1], [2**70], {"": ""}, {"size": -1, "sha256": ""}, [None] * 10_000,
)  # fmt: skip

PLACES = (
    "removed", "exchanged", "copied over", "a folder's", "a link's to itself", "huge",
    "a symbolic link", "a pipe", "a folder", "a socket", "a link to a folder",
    "its folder a link", "its folder a file",
)  # fmt: skip


def files_of(root: Path) -> list[Path]:
    """Every regular file, but those that an earlier change has made huge."""
    return sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_size <= 1 << 24
    )


def mutate(root: Path, seed: int) -> str:
    """Change one to three things in a cache; what was done, in words."""
    chance = random.Random(seed)
    return "; ".join(_one(root, chance) for _ in range(chance.choice((1, 1, 1, 2, 3))))


def _one(root: Path, chance: random.Random) -> str:
    files = files_of(root)
    kinds: list[tuple[Callable[[Path, random.Random], str], list[Path]]] = [
        (_bytes, files),
        (_document, [path for path in files if path.suffix == ".json"]),
        (_signed_shard, [path for path in files if path.name.startswith("c.")]),
        (_place, files),
        (_manifest, [root / "zarr.json"] if (root / "zarr.json") in files else []),
    ]
    change, among = chance.choice([each for each in kinds if each[1]])
    path = chance.choice(among)
    return f"{path.relative_to(root)} {change(path, chance)}"


def _changed(data: bytes, chance: random.Random, other: bytes) -> tuple[bytes, str]:
    at, length = chance.randrange(len(data) + 1), chance.randrange(1, 40)
    match chance.randrange(8):
        case 0:
            changed = bytearray(data)
            for _ in range(chance.randrange(1, 9)):
                if changed:
                    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            return bytes(changed), "flipped"
        case 1:
            return data[:at], f"truncated to {at}"
        case 2:
            return data + chance.randbytes(chance.choice((1, 4, 16, 100_000))), "extended"
        case 3:
            return data[:at] + bytes(length) + data[at + length :], f"zeroed at {at}"
        case 4:
            start = chance.randrange(len(other) + 1)
            return data[:at] + other[start : start + length] + data[at + length :], "spliced"
        case 5:
            return data[:at] + chance.randbytes(length) + data[at + length :], "random bytes"
        case 6:
            return data[:at] + b"\xff" * length + data[at + length :], f"ones at {at}"
        case _:
            return b"", "emptied"


def _bytes(path: Path, chance: random.Random) -> str:
    root = next(each for each in path.parents if each.name == "cache")
    other = chance.choice(files_of(root)).read_bytes()
    data, words = _changed(path.read_bytes(), chance, other)
    path.write_bytes(data)
    return words


def _place(path: Path, chance: random.Random) -> str:
    root = next(each for each in path.parents if each.name == "cache")
    kind = chance.choice(PLACES)
    other = chance.choice(files_of(root))
    if kind in ("exchanged", "copied over"):
        one, two = path.read_bytes(), other.read_bytes()
        path.write_bytes(two)
        if kind == "exchanged":
            other.write_bytes(one)
        return f"{kind} with {other.relative_to(root)}"
    path.unlink()
    folder = path.parent
    if kind == "a folder's":
        (path / "x").mkdir(parents=True)
    elif kind == "a link's to itself":
        path.symlink_to(path)
    elif kind == "a link to a folder":
        path.symlink_to(root)
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 36)  # sparse
    elif kind.startswith("its folder") and folder != root:
        shutil.rmtree(folder)
        folder.symlink_to(root.parent) if "link" in kind else folder.write_bytes(b"x")
    elif kind != "removed" and not kind.startswith("its folder"):
        odd_file(path, kind)
    return f"replaced: {kind}"


def _nodes(node: object, found: list[tuple[object, object]]) -> list[tuple[object, object]]:
    """Each (container, key) below a JSON value."""
    items = node.items() if isinstance(node, dict) else enumerate(node)  # type: ignore[arg-type]
    for key, value in list(items):
        found.append((node, key))
        if isinstance(value, dict | list):
            _nodes(value, found)
    return found


def _senseless(document: dict, chance: random.Random) -> str:
    nodes = _nodes(document, [])
    if not nodes:
        return "as it was"
    container, key = chance.choice(nodes)
    match chance.randrange(6):
        case 0:
            del container[key]
            return f"without {key!r}"
        case 1 if isinstance(container, dict):
            container[chance.choice(("x", "", "\x1b[2J", "ids/c.0.0.0", "../x"))] = container[key]
            return f"with {key!r} twice"
        case _:
            value = chance.choice(SENSELESS)
            container[key] = value
            return f"{key!r} = {repr(value)[:40]}"


def _read(path: Path) -> dict | None:
    if path.stat().st_size > 1 << 24:  # an earlier change has made it huge
        return None
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _sign(document: dict) -> bytes:
    document.pop("entry_sha256", None)
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({**document, "entry_sha256": sha256_of(text)}).encode() + b"\n"


def _document(path: Path, chance: random.Random) -> str:
    document = _read(path)
    if document is None or chance.random() < 0.1:
        deep = chance.choice((1000, 100_000, 3_000_000))
        path.write_bytes(
            chance.choice((b"[" * deep, b'{"a":' * deep, b"9" * deep, b'{"a": 1e%d}' % deep))
        )
        return f"nested or long: {deep}"
    words = _senseless(document, chance)
    if "ledger" in path.parts:
        signed = chance.random() < 0.8
        path.write_bytes(_sign(document) if signed else json.dumps(document).encode())
        return words + (", signed" if signed else "")
    path.write_bytes(json.dumps(document).encode())
    return words


def _manifest(path: Path, chance: random.Random) -> str:
    """The manifest, its digest and every entry that names it: as if all of it were true."""
    document = _read(path)
    try:
        manifest = document["attributes"]["retort"]
        words = _senseless(manifest, chance)
        digest = document["attributes"]["retort_sha256"] = digest_of(manifest)
    except (KeyError, TypeError, ValueError):
        return "as it was"
    path.write_text(json.dumps(document))
    for entry in sorted((path.parent / "ledger").rglob("*.json")):
        if entry.is_file() and (content := _read(entry)) is not None:
            content.update(manifest=digest, cache=manifest.get("cache_id"))
            entry.write_bytes(_sign(content))
    return f"{words}, all signed"


def _signed_shard(path: Path, chance: random.Random) -> str:
    """A shard that is another, of which every digest is true."""
    root = next(each for each in path.parents if each.name == "cache")
    data, words = _changed(path.read_bytes(), chance, chance.choice(files_of(root)).read_bytes())
    if chance.random() < 0.5 and len(data) >= 20:  # one chunk, whose index is true
        body = data[:-20]
        index = data[-20:-4] if chance.random() < 0.5 else _index(len(body), chance)
        data = body + index + google_crc32c.value(index).to_bytes(4, "little")
        words += ", its index true"
    path.write_bytes(data)
    numbers = path.name.split(".")[1:]
    folder = "source" if path.parent.name == "source" else numbers[0]
    shard = numbers[0] if folder == "source" or len(numbers) < 2 else numbers[1]
    entry = root / "ledger" / folder / f"{shard}.json"
    content = _read(entry) if entry.is_file() else None
    key = path.relative_to(root).as_posix()
    if content and isinstance(content.get("files"), dict) and key in content["files"]:
        content["files"][key] = {"size": len(data), "sha256": sha256_of(data)}
        entry.write_bytes(_sign(content))
        words += ", signed"
    return words


def _index(length: int, chance: random.Random) -> bytes:
    values = (0, 1, length, max(length - 1, 0), 2**32, 2**63, 2**64 - 1)
    return b"".join(chance.choice(values).to_bytes(8, "little") for _ in range(2))


def fresh_copy(source: Path, target: Path) -> Path:
    """The sound cache again, in a folder called `cache`."""
    if os.path.lexists(target):
        shutil.rmtree(target)
    return Path(shutil.copytree(source, target))
