"""The whole job on real scans, small enough for two cores: handwritten digits, 32 px.

The data set ships with scikit-learn (1,797 scans of 8x8 pixels, UCI's optical digits). The teacher
learns from 1,297 of them; the students have 200, 20 a class, and differ only in what they are told
of these: the label alone, or the teacher's cached answer too. The demo lists the very commands
that a user would type.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from student.runs.metrics import read_metrics
from teacher_cache.cache.cache import open_cache
from teacher_cache.errors import UserError
from teacher_cache.storage.disk import Disk
from teacher_cache.verification.inspection import inspect

VALIDATION_IMAGES = 500
STUDENT_IMAGES_A_CLASS = 20
ALONE = "student-alone"
DISTILLED = "student-distilled"
GHOSTNET = "ghostnetv3-distilled"
RUNS = {
    "teacher": "teacher",
    ALONE: "student alone",
    DISTILLED: "distilled",
    GHOSTNET: "GhostNetV3, distilled",
}


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the demo: what `cli.py` is asked, and whether others may run beside it."""

    arguments: tuple[str, ...]
    beside: bool = False
    """It runs in a process of its own, on the other core, until a step that `joins`."""
    joins: bool = False
    """It reads what a command beside it wrote."""


def write_digits(folder: Path) -> None:
    """Write `folder`/train, /few and /val as class folders of PNGs; the last 500 scans validate.

    `few` holds the first 20 scans of each class in `train`, for the students.

    Raises:
        UserError: the demo's extra packages are not installed.
    """
    try:
        import matplotlib  # noqa: F401  (asked for now, not after a minute)
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError(
            f"the demo needs scikit-learn and matplotlib ({error}): "
            "pip install 'retort-distill[demo]'"
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
    for label in sorted((temporary / "train").iterdir()):
        few = temporary / "few" / label.name
        few.mkdir(parents=True)
        for file in sorted(label.iterdir())[:STUDENT_IMAGES_A_CLASS]:
            shutil.copy(file, few)
    temporary.rename(folder)


def steps(out: Path) -> list[Step]:
    """What `cli.py` is asked to do, in order."""
    train, few, val = (str(out / "digits" / part) for part in ("train", "few", "val"))
    cache, weights, ghostnet = str(out / "cache"), str(out / "teacher.safetensors"), out / GHOSTNET
    teacher = ["train-student", "digits-teacher", "--data", train, "--val", val]
    checkpoint = f"teacher.checkpoint={weights}"
    data = ("--cache", cache, "--data", few, "--val", val)
    student = ("train-student", "digits-student", *data)
    return [
        Step((*teacher, "--out", str(out / "teacher"))),
        Step(("export", str(out / "teacher"), "--out", weights)),
        Step(("cache-teacher", "digits", "--data", few, "--out", cache, "--set", checkpoint)),
        Step(("train-student", "digits-ghostnetv3", *data, "--out", str(ghostnet)), beside=True),
        Step((*student, "--out", str(out / ALONE), "--set", "distill.alpha=0")),
        Step((*student, "--out", str(out / DISTILLED))),
        Step(("evaluate", str(ghostnet), "--val", val), joins=True),
        Step(("export", str(ghostnet), "--out", str(out / "student.safetensors"))),
    ]


def run(
    steps: Iterable[Step],
    call: Callable[[tuple[str, ...]], object],
    say: Callable[[str], object],
    *,
    program: Path,
    log: Path,
) -> float:
    """Run the commands, and return how many seconds the cache took.

    Args:
        steps: what to run, in order.
        call: runs a command in this process.
        say: shows a line.
        program: `cli.py`, for the command that runs beside others.
        log: where that one's output goes.

    Raises:
        UserError: the command beside has failed; with its output.
    """
    cache_seconds, beside = 0.0, None
    try:
        for step in steps:
            if step.joins and beside is not None:
                say("\n" + _last_line(beside, log))
            say(" ".join(("\n$ cli.py", *step.arguments, *("&" * step.beside))))
            if step.beside:
                beside = _start(program, step.arguments, log)
                continue
            began = time.monotonic()
            call(step.arguments)
            if step.arguments[0] == "cache-teacher":
                cache_seconds = time.monotonic() - began
    finally:
        if beside is not None and beside.poll() is None:
            beside.terminate()  # it saves its state, and the same command continues
            beside.wait()
    return cache_seconds


def _start(program: Path, arguments: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as file:
        command = [sys.executable, str(program), *arguments]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def _last_line(beside: "subprocess.Popen[bytes]", log: Path) -> str:
    """What it wrote last, once it has ended."""
    code = beside.wait()
    output = log.read_text().strip()
    if code:
        raise UserError(f"the command beside the others ended with exit code {code}: {output}")
    return output.splitlines()[-1] if output else ""


def report(out: Path, *, seconds: float, cache_seconds: float) -> str:
    """Draw the curves, and return what was measured: each run, and what the teacher cost.

    Args:
        out: what the demo wrote.
        seconds: of the whole demo.
        cache_seconds: of the command that filled the cache.
    """
    summaries = {run: json.loads((out / run / "summary.json").read_text()) for run in RUNS}
    draw_curves(out)
    rows = [
        ("", "top-1", "images seen", "seconds", "parameters", "folded"),
        *(_row(RUNS[run], summary) for run, summary in summaries.items()),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(
        [
            "",
            *table,
            "",
            *_cost_of_the_teacher(out, summaries, cache_seconds),
            f"{seconds:.0f} s in all; curves in {out / 'curves.png'}, everything else in {out}/",
        ]
    )


def _cost_of_the_teacher(
    out: Path, summaries: Mapping[str, Mapping[str, Any]], cache_seconds: float
) -> list[str]:
    cache = inspect(open_cache(Disk(out / "cache")))
    student, teacher = summaries[DISTILLED], summaries["teacher"]
    online = student["images"] * seconds_an_image(teacher["model"], out / "teacher.safetensors")
    return [
        f"teacher, once: {teacher['seconds']:.0f} s to train, {cache_seconds:.0f} s for the cache "
        f"of {cache['records']:,} answers, {cache['bytes a record']} bytes each",
        f"each student: its own training, {student['seconds']:.0f} s for {student['images']:,} "
        f"images; with the teacher online, {online:.0f} s more, every time",
    ]


def seconds_an_image(model: str, weights: Path) -> float:
    """Seconds of a teacher's forward pass per image of 32 px: the best of ten batches of 50."""
    import timm
    import torch

    network = timm.create_model(model, num_classes=10, checkpoint_path=str(weights)).eval()
    images = torch.zeros(50, 3, 32, 32)
    taken = []
    with torch.inference_mode():
        for _ in range(10):
            started = time.perf_counter()
            network(images)
            taken.append(time.perf_counter() - started)
    return min(taken) / len(images)


def draw_curves(out: Path) -> None:
    """Write `out`/curves.png: validation top-1, and training cross-entropy, of each run by step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    colors = ("0.55", "tab:orange", "tab:blue", "tab:green")
    for (run, label), color in zip(RUNS.items(), colors, strict=True):
        lines = read_metrics(out / run / "metrics.jsonl")
        evaluations = [(line["step"], line["top1"]) for line in lines if "top1" in line]
        losses = [(line["step"], line["ce"]) for line in lines if "loss" in line]
        accuracy.plot(*zip(*evaluations, strict=True), "o-", ms=3, color=color, label=label)
        loss.plot(*zip(*losses, strict=True), color=color)
    accuracy.set(title="validation", xlabel="step", ylabel="top-1 [%]")
    loss.set(title="training", xlabel="step", ylabel="cross-entropy with the label [nats]")
    accuracy.set_ylim(0, 100)
    loss.set_ylim(bottom=0)
    for axes in (accuracy, loss):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    accuracy.legend(frameon=False, loc="lower right")
    figure.savefig(out / "curves.png", dpi=150)


def _row(label: str, summary: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        label,
        f"{summary['top1']:.1f}%",
        f"{summary['images']:,}",
        f"{summary['seconds']:.0f}",
        f"{summary['parameters']:,}",
        f"{summary['parameters_folded']:,}",
    )
