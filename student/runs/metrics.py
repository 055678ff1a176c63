"""`metrics.jsonl`: a JSON object a logging interval, one an evaluation, and one an epoch's end."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from teacher_cache.durable import write_atomic


def append_metrics(path: Path, metrics: Mapping[str, float]) -> None:
    """Add one line."""
    with path.open("a") as file:
        file.write(json.dumps(dict(metrics)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All whole lines; a line torn by a crash is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def forget_after(path: Path, step: int) -> None:
    """Drop what was written after the state that a run continues from, so no step stands twice."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


CHANGED = "validation_images_changed"
"""A line with it says that later evaluations are of other images, and so how many."""


def best_evaluation(path: Path, name: str, best: float) -> float:
    """The best accuracy that was measured on the validation set of today; -1 if there is none.

    Args:
        path: the metrics.
        name: of the accuracy.
        best: the one that a saved state knows.
    """
    for line in read_metrics(path):
        best = -1.0 if CHANGED in line else max(best, line.get(name, -1.0))
    return best


def last_evaluation(path: Path, step: int) -> dict[str, float]:
    """The figures of the evaluation after `step`, empty if there was none."""
    found = [m for m in read_metrics(path) if m["step"] == step and "top1" in m]
    return found[-1] if found else {}
