"""The whole job on real scans, small enough for two cores: handwritten digits, 64 px.

The data set ships with scikit-learn (1,797 scans of 8x8 pixels, UCI's optical digits). The demo
writes it as class folders, and lists the very commands that a user would type.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from student.metrics import read_metrics
from teacher_cache.errors import UserError
from teacher_cache.inspection import inspect
from teacher_cache.store import open_cache

VALIDATION_IMAGES = 500
RUNS = {"teacher": "teacher", "student-alone": "student alone", "student-distilled": "distilled"}


def write_digits(folder: Path) -> None:
    """Write `folder`/train and `folder`/val as class folders of PNGs; the last 500 scans validate.

    Raises:
        UserError: the demo's extra packages are not installed.
    """
    try:
        import matplotlib  # noqa: F401  (asked for now, not after three minutes)
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            f"the demo needs scikit-learn and matplotlib ({error}): pip install 'retort[demo]'"
        ) from None
    if folder.exists():
        return
    digits = load_digits()
    temporary = folder.with_name(folder.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # scans have 17 gray levels
    for number, (scan, label) in enumerate(zip(pixels, digits.target, strict=True)):
        part = "val" if number >= len(pixels) - VALIDATION_IMAGES else "train"
        file = temporary / part / f"digit-{label}" / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scan).save(file)
    temporary.rename(folder)


def commands(out: Path) -> list[Sequence[str]]:
    """What `cli.py` is asked to do, in order."""
    train, val = str(out / "digits" / "train"), str(out / "digits" / "val")
    data = ["--data", train, "--val", val]
    cache, weights = str(out / "cache"), str(out / "teacher.safetensors")
    checkpoint = f"teacher.checkpoint={weights}"
    training = ["train-student", "digits-student", "--cache", cache, *data]
    return [
        ["train-student", "digits-teacher", *data, "--out", str(out / "teacher")],
        ["export", str(out / "teacher"), "--out", weights],
        ["cache-teacher", "digits", "--data", train, "--out", cache, "--set", checkpoint],
        [*training, "--out", str(out / "student-alone"), "--set", "distill.alpha=0"],
        [*training, "--out", str(out / "student-distilled")],
        ["evaluate", str(out / "student-distilled"), "--val", val],
        ["export", str(out / "student-distilled"), "--out", str(out / "student.safetensors")],
    ]


def report(out: Path, *, seconds: float) -> str:
    """Draw the curves, and return the table of what was measured."""
    summaries = {run: json.loads((out / run / "summary.json").read_text()) for run in RUNS}
    cache = inspect(open_cache(out / "cache"))
    draw_curves(out)
    rows = [
        ("", "top-1", "seconds", "parameters", "folded"),
        *(_row(RUNS[run], summary) for run, summary in summaries.items()),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(
        [
            "",
            *lines,
            "",
            f"cache: {cache['records']:,} records of {cache['k']} classes, "
            f"{cache['bytes a record']} bytes a record "
            f"({cache['bytes a record, all counted']} with index and metadata)",
            f"{seconds:.0f} s in all; curves in {out / 'curves.png'}, everything else in {out}/",
        ]
    )


def draw_curves(out: Path) -> None:
    """Write `out`/curves.png: top-1 by epoch and training loss by step, for each run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    for (run, label), color in zip(RUNS.items(), ("0.55", "tab:orange", "tab:blue"), strict=True):
        lines = read_metrics(out / run / "metrics.jsonl")
        evaluations = [line for line in lines if "top1" in line]
        steps = [line for line in lines if "loss" in line]
        accuracy.plot(
            [line["epoch"] + 1 for line in evaluations],
            [line.get("ema_top1", line["top1"]) for line in evaluations],
            marker="o",
            markersize=3,
            color=color,
            label=label,
        )
        loss.plot(
            [line["step"] for line in steps],
            [line["ce"] for line in steps],
            color=color,
            label=label,
        )
    accuracy.set(title="validation", xlabel="epoch", ylabel="top-1, averaged weights [%]")
    loss.set(title="training", xlabel="step", ylabel="cross-entropy [nats]", yscale="log")
    for axes in (accuracy, loss):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    accuracy.legend(frameon=False)
    figure.savefig(out / "curves.png", dpi=150)


def _row(label: str, summary: dict[str, Any]) -> tuple[str, str, str, str, str]:
    top1 = summary.get("ema_top1", summary["top1"])
    return (
        label,
        f"{top1:.1f}%",
        f"{summary['seconds']:.0f}",
        f"{summary['parameters']:,}",
        f"{summary['parameters_folded']:,}",
    )
