"""Names that look the same and are not: in two Unicode forms, or in upper and lower case.

macOS writes a name in Unicode's decomposed form (NFD) where other systems keep the composed one
(NFC), and file systems that are blind to case keep one of two names.
"""

import unicodedata
from collections.abc import Iterable


def spelling_remark(names: Iterable[str], others: Iterable[str]) -> str:
    """How one of the names differs from one of the others that looks the same; "" if none does."""
    known = {_folded(other): other for other in others}
    for name in names:
        other = known.get(_folded(name), name)
        if other != name:
            return f" ({_difference(name, other)})"
    return ""


def twins_among(names: Iterable[str]) -> str:
    """Two of the names that look the same, and how they differ; "" if there are none."""
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(_folded(name), name)
        if other != name:
            return _difference(other, name)
    return ""


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _difference(name: str, other: str) -> str:
    same = unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", other)
    how = "in Unicode form, NFC and NFD" if same else "in upper and lower case"
    return f"{name!a} and {other!a} differ only {how}"
