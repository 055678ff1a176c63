"""One GPU: BEiTv2-B's answers and GhostNetV3's training, against what its matrix products reach.

    python -m benchmarks.gpu [--data DIR] [--out docs/gpu.md]      (about 10 minutes on one GPU)
    python -m benchmarks.gpu --no-compile                          (without torch.compile: quick)
    python -m benchmarks.gpu --dry-run                             (CPU, tiny, writes nothing)

Without DIR the images are random and lie ready in page-locked memory: what is measured is the
device. With DIR, class folders of images, the loader's workers render them, and `data-wait` is the
share of time that the loop waited for them. Weights are random: speed does not depend on them.
"""

import argparse
import gc
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import describe
from student.data.batches import MicroBatch, batches
from student.data.prefetch import on_device
from student.data.run_plan import plan_run
from student.data.training_data import plain_data
from student.losses.target import SparseTarget
from student.models.size import multiply_adds
from student.models.trial import ModelError
from student.recipe import StudentRecipe
from student.training.trainee import Trainee
from teacher_cache.images.index import index_images
from teacher_cache.loading.loader import LoaderSettings
from teacher_cache.recipes.cache_recipe import TeacherSection
from teacher_cache.recipes.document import parse_recipe
from teacher_cache.stopwatch import Stopwatch
from teacher_cache.teacher.networks import load_teacher

CLASSES, K = 1000, 20
BEIT = "beitv2_base_patch16_224.in1k_ft_in22k_in1k"


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    teacher: str = BEIT
    students: tuple[str, ...] = ("ghostnetv3_100", "ghostnetv3_130")
    compiled: tuple[bool, ...] = (False, True)
    rows: int = 256
    size: int = 224
    steps: int = 20
    warm_up: int = 5
    matrix: int = 8192


DRY = Scale(
    "test_vit", ("ghostnetv3_050",), (False,), rows=4, size=64, steps=2, warm_up=1, matrix=64
)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    images_per_s: float
    flops: float
    """Of one image: two for a multiply-add."""
    data_wait: float | None
    bytes: int

    def line(self, ceiling: float) -> str:
        waited = "" if self.data_wait is None else f"{self.data_wait:.0%}"
        share = self.images_per_s * self.flops / ceiling
        memory = f"{self.bytes / 1e9:.1f} GB" if self.bytes else ""
        return f"| {self.what} | {self.images_per_s:,.0f} | {share:.1%} | {waited} | {memory} |"


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work, device: torch.device, scale: Scale) -> float:
    """Of one call, once warm."""
    for _ in range(scale.warm_up):
        work()
    finish(device)
    started = time.perf_counter()
    for _ in range(scale.steps):
        work()
    finish(device)
    return (time.perf_counter() - started) / scale.steps


def peak_bytes(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def forget_peak(device: torch.device) -> None:
    gc.collect()  # networks are cycles: the last row's would be counted here
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def ceiling_of(device: torch.device, scale: Scale) -> float:
    """Operations a second of a bfloat16 matrix product: the best of three."""
    n = scale.matrix
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return max(2 * n**3 / seconds(lambda: a @ b, device, scale) for _ in range(3))


def synthetic(device: torch.device, scale: Scale) -> MicroBatch:
    size = (scale.rows, scale.size, scale.size, 3)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (scale.rows,))
    logp, ids = torch.randn(scale.rows, CLASSES).log_softmax(1).topk(K)
    target = SparseTarget(ids, logp, (1 - logp.exp().sum(1)).log())
    if device.type == "cuda":
        pixels = pixels.pin_memory()
    return MicroBatch(labels.numpy(), pixels, labels, target)


def teacher_row(device: torch.device, scale: Scale) -> Row:
    forget_peak(device)
    section = TeacherSection(model=scale.teacher, pretrained=False)
    teacher = load_teacher(
        section, class_count=CLASSES, has_class_map=False, size=scale.size, device=device
    )
    pixels = synthetic(device, scale).pixels_BHWC
    each = seconds(lambda: teacher.logits(pixels), device, scale)
    network = teacher.members[0].network
    peak = peak_bytes(device)
    flops = 2.0 * multiply_adds(network.cpu(), size=scale.size)
    return Row(f"{scale.teacher}, answers", scale.rows / each, flops, None, peak)


def student_row(
    name: str, device: torch.device, scale: Scale, data: Path | None, *, compiled
) -> Row:
    forget_peak(device)
    precision = "bf16" if device.type == "cuda" else "fp32"
    document = {
        "student": {"model": name, "size": scale.size},
        "distill": {"alpha": 0.0 if data else 0.5},
        "optimizer": {"batch_size": scale.rows},
        "loader": {"workers": max(1, (os.cpu_count() or 2) - 1), "memory_mb": 4096},
        "run": {"channels_last": True, "compile": compiled, "precision": precision},
    }
    recipe = parse_recipe(document, StudentRecipe, source="benchmark")
    trainee = Trainee.build(recipe, CLASSES, scale.size, device)
    watch = Stopwatch()
    with _stream(recipe, device, scale, data) as stream:
        ready = (step for step in on_device(stream, device, watch) if step)  # none: images are slow
        for step in range(scale.warm_up):
            trainee.step(next(ready), lr=0.001, step=step)
        finish(device)
        watch.shares()
        started = time.perf_counter()
        for step in range(scale.steps):
            trainee.step(next(ready), lr=0.001, step=scale.warm_up + step)
        finish(device)
        each = (time.perf_counter() - started) / scale.steps
    waited = watch.shares("data_wait")["data_wait_share"]
    what = f"{name}, training, {precision}, channels_last{', compiled' if compiled else ''}"
    flops, peak = training_flops(trainee, scale), peak_bytes(device)
    return Row(what, scale.rows / each, flops, waited if data else None, peak)


def _stream(
    recipe: StudentRecipe, device: torch.device, scale: Scale, data: Path | None
) -> AbstractContextManager[Iterator[list[MicroBatch]]]:
    if data is None:
        return nullcontext(repeat([synthetic(device, scale)]))
    training = plain_data(recipe, index_images(data))
    settings = LoaderSettings(
        recipe.loader.workers, recipe.loader.memory_mb, pinned=device.type == "cuda"
    )
    return batches(training, plan_run(recipe, training), start_step=0, settings=settings)


def training_flops(trainee: Trainee, scale: Scale) -> float:
    """Of one image's forward and backward pass, as torch counts them."""
    device = trainee.normalization.mean.device
    images = torch.randn(2, 3, scale.size, scale.size, device=device)
    with FlopCounterMode(display=False) as counter:
        trainee.network.train()(images).sum().backward()
    return counter.get_total_flops() / len(images)


def told(line: str) -> str:
    print(line, file=sys.stderr, flush=True)  # compiling takes minutes: say what is known so far
    return line


def report(device: torch.device, scale: Scale, data: Path | None) -> str:
    ceiling = ceiling_of(device, scale)
    lines = [told(teacher_row(device, scale).line(ceiling))]
    for name in scale.students:
        for compiled in scale.compiled:
            try:
                row = student_row(name, device, scale, data, compiled=compiled)
                lines.append(told(row.line(ceiling)))
            except (ModelError, RuntimeError) as error:
                if not compiled:
                    raise
                reason = (
                    str(error).strip().splitlines()[0][:200]
                )  # most often no compiler is installed
                lines.append(told(f"| {name}, compiled: {reason} | | | | |"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, a dry run"
    source = f"images of {data.name}" if data else "random images, ready in memory"
    return "\n".join(
        [
            "# On a GPU",
            "",
            f"`python -m benchmarks.gpu`: {name}; {describe()}.",
            f"Batches of {scale.rows} at {scale.size} px, {source}, mean of {scale.steps} steps.",
            f"Ceiling: {ceiling / 1e12:,.1f} TFLOP/s, a bfloat16 product of {scale.matrix:,} x "
            f"{scale.matrix:,} matrices.",
            "",
            "| | images/s | share of the ceiling | data-wait | memory |",
            "|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="class folders of images")
    parser.add_argument("--out", type=Path, default=Path("docs/gpu.md"))
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU, nothing written")
    arguments = parser.parse_args()
    if arguments.dry_run:
        print(report(torch.device("cpu"), DRY, arguments.data))
        return
    if not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here: try --dry-run")
    scale = replace(Scale(), compiled=(False,)) if arguments.no_compile else Scale()
    text = report(torch.device("cuda"), scale, arguments.data)
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
