"""What of a job any reader of the service may see: pure. No folder, no secret, text only."""

import math
import re
from collections.abc import Mapping
from pathlib import PurePath

CONFIG_KEYS = frozenset(
    word
    for line in (
        "recipe data views.count views.size views.interpolation views.seed views.reuse",
        "teacher.model teacher.batch_size teacher.pretrained topk.k topk.temperatures",
        "storage.encoding storage.rows_per_shard storage.views_per_tile loader.memory_mb",
        "student.model student.size distill.alpha distill.temperature distill.tail distill.loss",
        "optimizer.name optimizer.batch_size optimizer.micro_batch optimizer.lr",
        "optimizer.weight_decay schedule.epochs schedule.warmup_epochs schedule.min_lr",
        "ema.decay ema.warmup reparam.branches evaluation.crop_ratio loader.workers run.seed",
        "run.threads run.precision run.compile run.sync_batchnorm",
    )
    for word in line.split()
)
"""What of a recipe a record shows, by section and key; anything else stays with the job."""

_LOOKED_AT = 16
"""How many times the characters that may be shown are looked at."""
_PART = r"""(?:[^/\s'":,]|(?<=\w)['":,](?=\w))+"""
"""A word of a folder's name; a quote or a colon ends it where no letter follows."""
_FOLDER = rf"{_PART}(?:\ (?!~){_PART}){{0,3}}"
_PRIVATE = (
    r"[\w-]*(?:passw(?:or)?d|pwd|secret|token|api_?key|access_?key|signature|credentials?)[\w-]*"
)
_VALUE = r"""(?:"[^"\n]*"|'[^'\n]*'|[^\s&"',;]+)"""
_CUTS = tuple(
    (re.compile(pattern), shown)
    for pattern, shown in (
        # user:password@, whatever the password is made of, unless it is a port's number
        (r"://[^\s/@:]*:(?!\d{1,5}(?:[/?#\s]|$))[^\n]*@", "://"),
        (r"""://[^\s'"<>]*@""", "://"),
        (r"""(://[^\s'"<>?#]+)[?#][^\s'"<>]+""", r"\1?..."),
        (rf"(?i)\b({_PRIVATE}=){_VALUE}", r"\1..."),
        (rf"""(?i)(["']{_PRIVATE}["']\s*:\s*){_VALUE}""", r"\1..."),
        (rf"(?i)(authorization[\"']?\s*[:=]\s*)(?:(?:bearer|basic)\s+)?{_VALUE}", r"\1..."),
        (r"(?i)\b(bearer) [\w.~+/=-]{16,}", r"\1 ..."),
        (r"(?i)\b(?:file://[^/\s]*|[a-z][a-z0-9+.-]*://)/+", "/"),  # sqlite:////x is a path, too
        (rf"(?:(?<![\w./~])(?:~[\w.-]*)?|(?<=\s-\w))(?:/{_FOLDER})+/(?=[^/\s])", ""),
        (r"~[\w.-]*/(?=[^/\s])", ""),
        (r"""(?<!\w)[A-Za-z]:\\(?:[^\\\n'":,]+\\)*""", ""),
    )
)


def shown_config(recipe: Mapping[str, object]) -> dict[str, object]:
    """Return what of a recipe a record shows: nested sections flattened to dotted keys."""
    found: dict[str, object] = {}
    for name, value in recipe.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            found[str(name)] = value
    return {name: value for name, value in found.items() if name in CONFIG_KEYS}


def public_text(text: str, limit: int = 500) -> str:
    """Return `text` as any reader of the service may see it, at most `limit` characters of it.

    Absolute paths are cut to their last part. Who logs in and what is asked for are cut out of
    URLs, and values out of what is named like a secret. Where a text can be read in two ways, more
    is cut. What UTF-8 or PostgreSQL cannot hold is spelled out: a file's name need not be text.
    """
    text = text[: _LOOKED_AT * limit]
    for pattern, shown in _CUTS:
        text = pattern.sub(shown, text)
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")[:limit]


def public_value(value: object) -> object:
    """Return `value` as JSON can hold it and any reader may see it; None for what is not finite."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {public_text(str(key)): public_value(item) for key, item in value.items()}
        case list() | tuple():
            return [public_value(item) for item in value]
        case PurePath():
            return public_text(value.name)
        case _:
            return public_text(str(value))


def public_metrics(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return metrics as JSON can hold them: None for what is not finite, floats for the rest."""
    values = {public_text(str(name)): float(value) for name, value in metrics.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
