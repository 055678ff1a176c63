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

    Absolute paths are cut to their last part, and who logs in is cut out of URLs. What UTF-8 or
    PostgreSQL cannot hold is spelled out: a file's name need not be text.
    """
    text = re.sub(r"://[^/\s@]+@", "://", text)
    cut = re.sub(r"(?<![\w./])(?:/[^/\s'\":,]+)+/(?=[^/\s])", "", text)
    return cut.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")[:limit]


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
