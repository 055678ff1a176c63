"""JSON that may come from a stranger: bounded in length and depth, and an object at its top."""

import json
from typing import Any


def read_object(data: bytes, *, at_most: int) -> dict[str, Any]:
    """Parse bytes that must hold one JSON object.

    Args:
        data: what was read.
        at_most: how many bytes are read at all.

    Raises:
        ValueError: longer than that, nested too deep for Python, no JSON, no object, or a key twice
            in one object.
    """
    if len(data) > at_most:
        raise ValueError(f"it has {len(data)} bytes, at most {at_most} are expected")
    try:
        found = json.loads(data, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError(f"it holds a JSON {type(found).__name__}, an object is expected")  # noqa: TRY004  (of the file, not of a caller)
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in one of its objects")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}, which is no JSON number")
