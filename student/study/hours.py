"""What a study will take on this machine, from a few measured steps of each network.

V views of a cache, N images.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from student.recipe import StudentRecipe, StudentViews
from student.speed.step_speed import step_images_per_s
from student.speed.throughput import images_per_s
from student.study.work_plan import WorkPlan
from teacher_cache.images.index import ImageIndex
from teacher_cache.loading.renderers import ViewRenderer
from teacher_cache.recipes.cache_recipe import CacheRecipe, ViewsSection
from teacher_cache.recipes.document import digest_of
from teacher_cache.teacher.networks import load_teacher


def hours_of(
    plan: WorkPlan, index: ImageIndex, device: torch.device, *, seconds: float = 3.0
) -> list[dict[str, Any]]:
    """Every teacher, cache and run: its command's folder, images, and hours of one process.

    Each network is timed once for about `seconds`, with weights drawn at random, and so is the
    rendering of its views by the recipe's workers; whichever is slower decides.

    Args:
        plan: the study's jobs.
        index: the training images.
        device: on which the networks are timed.
        seconds: how long a figure is measured.
    """
    rates, lines = _Rates(index, device, seconds), []
    for teacher in plan.teachers:
        rate = rates.of_student(teacher.recipe, teacher.recipe.views)
        images = teacher.recipe.schedule.epochs * len(index)
        lines.append(_line("teacher", str(teacher.run), images, rate))
    views = {}
    for cache in plan.caches:
        views[cache.folder] = cache.recipe.views
        rate = rates.of_cache(cache.recipe)
        lines.append(_line("cache", str(cache.folder), cache.views * len(index), rate))
    for run in plan.runs:
        rate = rates.of_student(run.recipe, views[run.cache])
        steps = run.recipe.schedule.epochs * (len(index) // run.recipe.optimizer.batch_size)
        images = steps * run.recipe.optimizer.batch_size
        lines.append(_line("run", f"{run.row}, seed {run.seed}", images, rate))
    return lines


def hours_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines for a terminal: every job, and the hours of all together on one process."""
    total = sum(float(line["hours"]) for line in lines)
    shown = [
        f"{line['kind']:8} {line['hours']:>9.3g} h {line['images']:>15,} images  {line['name']}"
        for line in lines
    ]
    return "\n".join([*shown, f"{'in all':8} {total:>9.3g} h of one process on this device"])


class _Rates:
    """Images a second of networks and of rendering, each measured when it is first asked for."""

    def __init__(self, index: ImageIndex, device: torch.device, seconds: float) -> None:
        self.index = index
        self.device = device
        self.seconds = seconds
        self.known: dict[str, float] = {}

    def of_student(self, recipe: StudentRecipe, views: ViewsSection | StudentViews) -> float:
        """Of training: steps on pixels that the recipe's workers render."""
        size = recipe.student.size or views.size
        same = {"schedule": None, "ema": None, "distill": None, "run": recipe.run.precision}
        steps = self._once(
            ["train", recipe.identity() | same, size],
            lambda: step_images_per_s(
                recipe,
                size=size,
                class_count=self.index.class_count,
                device=self.device,
                seconds=self.seconds,
            ),
        )
        return min(steps, self._rendering(views, size, recipe.loader.workers))

    def of_cache(self, recipe: CacheRecipe) -> float:
        """Of a fill: the teacher's answers to pixels that the recipe's workers render."""
        views = recipe.views
        answers = self._once(["ask", recipe.data_settings()], lambda: self._asking(recipe))
        return min(answers, self._rendering(views, views.size, recipe.loader.workers))

    def _once(self, what: object, measure: Callable[[], float]) -> float:
        key = digest_of(what)
        if key not in self.known:
            self.known[key] = measure()
        return self.known[key]

    def _rendering(self, views: ViewsSection | StudentViews, size: int, workers: int) -> float:
        policy = views.model_dump(mode="json", exclude={"count", "reuse", "seed", "size"})
        renderer = ViewRenderer(
            self.index, views, views.seed, size, views.interpolation, check_size=size
        )
        rows = len(self.index)
        return self._once(
            ["render", policy, size, workers],
            lambda: images_per_s(renderer, [workers], seconds=self.seconds, rows=rows)[workers],
        )

    def _asking(self, recipe: CacheRecipe) -> float:
        drawn = {"pretrained": False, "checkpoint": None}
        members = tuple(each.model_copy(update=drawn) for each in recipe.teacher.ensemble)
        section = recipe.teacher.model_copy(update={**drawn, "ensemble": members})
        size, batch = recipe.views.size, recipe.teacher.batch_size
        teacher = load_teacher(
            section,
            class_count=self.index.class_count,
            has_class_map=True,
            size=size,
            device=self.device,
        )
        pixels_BHWC = torch.zeros((batch, size, size, 3), dtype=torch.uint8)
        teacher.logits_of_batch(pixels_BHWC, batch).cpu()
        started, batches = time.perf_counter(), 0
        while not batches or time.perf_counter() - started < self.seconds:
            teacher.logits_of_batch(pixels_BHWC, batch).cpu()
            batches += 1
        return batches * batch / (time.perf_counter() - started)


def _line(kind: str, name: str, images: int, rate: float) -> dict[str, Any]:
    hours = images / rate / 3600
    return {"kind": kind, "name": name, "images": images, "hours": float(f"{hours:.3g}")}
