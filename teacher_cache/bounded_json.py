"""JSON that may come from a stranger: bounded in length and depth, and an object at its top."""

import json
from typing import Any

MOST_DEPTH = 32
"""How deep brackets may be nested: a manifest needs 6. Python's reader would recurse as deep."""


def read_object(data: bytes, *, at_most: int) -> dict[str, Any]:
    """Parse bytes that must hold one JSON object.

    Args:
        data: what was read.
        at_most: how many bytes are read at all.

    Raises:
        ValueError: longer or deeper than that, no JSON, no object, or a key twice in one object.
    """
    if len(data) > at_most:
        raise ValueError(f"it has {len(data)} bytes, at most {at_most} are expected")
    _require_shallow(data)
    try:
        found = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError(f"it holds a JSON {type(found).__name__}, an object is expected")  # noqa: TRY004  (of the file, not of a caller)
    return found


def _require_shallow(data: bytes) -> None:
    # Brackets inside strings count, too: no name in a cache holds dozens of them in a row.
    depth = deepest = 0
    for byte in data:
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    if deepest > MOST_DEPTH:
        raise ValueError(f"its brackets are nested {deepest} deep, at most {MOST_DEPTH} expected")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one of its objects")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no JSON number")
