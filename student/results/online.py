"""Training on a cache beside training with the teacher in the loop: same weights, same pixels.

B rows of a micro-batch, C classes.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from student.data.batches import MicroBatch, batches, target_of
from student.data.run_plan import Plan, plan_run
from student.data.training_data import TrainingData
from student.losses.target import SparseTarget
from student.recipe import StudentRecipe
from student.training.train import rate_at
from student.training.trainee import Trainee
from teacher_cache.errors import UserError
from teacher_cache.loading.loader import LoaderSettings
from teacher_cache.loading.queue import render_here
from teacher_cache.loading.renderers import Request, ViewRenderer
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.teacher.answers import top_k
from teacher_cache.teacher.networks import Teacher

TIMED_STEPS = 3


class Source(StrEnum):
    """From where a student is taught."""

    DENSE = "dense"
    """The live teacher's whole answer."""
    CUT = "cut"
    """The live teacher's answer, cut to what a record of the cache holds."""
    CACHED = "cached"
    """The cache's records."""


@dataclass(frozen=True, slots=True)
class Beside:
    """A source beside the dense one, at equal weights."""

    loss: float
    """Of the whole step, in nats."""
    gradient_difference: float
    """|g - g_dense| / |g_dense| over all parameters."""
    gradient_cosine: float


class Online:
    """A student, the records it is to learn from, and the teacher that gave them."""

    def __init__(
        self,
        recipe: StudentRecipe,
        data: TrainingData,
        teacher: Teacher,
        teacher_recipe: CacheRecipe,
        device: torch.device,
    ) -> None:
        """Prepare to compare.

        Args:
            recipe: the student's.
            data: a cache's, from `replayed_data`.
            teacher: the one that filled the cache.
            teacher_recipe: of that cache.
            device: of the student.

        Raises:
            UserError: data without a cache.
        """
        if data.cache is None:
            raise UserError("there is nothing to compare without a cache: pass --cache")
        self.recipe, self.data, self.device = recipe, data, device
        self.teacher, self.teacher_recipe = teacher, teacher_recipe
        self.plan: Plan = plan_run(recipe, data)
        self.renderer = ViewRenderer.of(data.index, data.cache.manifest.parsed_recipe().views)

    def trainee(self) -> Trainee:
        """A student at the start of its run; all are alike."""
        size = self.data.renderer.size
        return Trainee.build(self.recipe, self.data.class_count, size, self.device)

    def steps(self, count: int) -> Iterator[list[MicroBatch]]:
        """The run's first steps, with the cache's records."""
        settings = LoaderSettings(self.recipe.loader.workers, self.recipe.loader.memory_mb)
        with closing(batches(self.data, self.plan, start_step=0, settings=settings)) as stream:
            found = 0
            for step in stream:
                if step:
                    yield step
                    found += 1
                if found == count:
                    return

    def taught_by(
        self, source: Source, step: Sequence[MicroBatch], number: int
    ) -> list[MicroBatch]:
        """A step's batches with the targets of a source; `number` tells its epoch's view."""
        if source is Source.CACHED:
            return list(step)
        return [replace(batch, target=self._asked(source, batch.rows, number)) for batch in step]

    def _asked(self, source: Source, rows_B: np.ndarray, number: int) -> SparseTarget:
        view = self.data.view_of(number // self.plan.steps_per_epoch)
        pixels_BHWC = render_here(self.renderer, Request(rows_B, (view,))).pixels_GBHWC[0]
        size = self.teacher_recipe.teacher.batch_size
        logits_BC = torch.cat(
            [self.teacher.logits_of_batch(part, size) for part in pixels_BHWC.split(size)]
        ).clone()
        if source is Source.DENSE:
            return SparseTarget.of_all(logits_BC.log_softmax(1).cpu())
        topk = self.teacher_recipe.topk
        cut = top_k(logits_BC, k=topk.k, temperatures=topk.temperatures, moments=topk.keeps_moments)
        return target_of(cut, self.data.temperature_column)

    def at_equal_weights(self) -> dict[Source, Beside]:
        """Loss and gradient of the first step, by source."""
        trainee = self.trainee()
        (step,) = self.steps(1)
        found = {source: self._gradient(trainee, source, step) for source in Source}
        _, dense_P = found[Source.DENSE]
        return {
            source: Beside(
                loss,
                float((own_P - dense_P).norm() / dense_P.norm()),
                float(torch.cosine_similarity(own_P, dense_P, dim=0)),
            )
            for source, (loss, own_P) in found.items()
        }

    def _gradient(
        self, trainee: Trainee, source: Source, step: Sequence[MicroBatch]
    ) -> tuple[float, Tensor]:
        """Loss and gradient [parameters], as float64; no weight moves."""
        losses = trainee.gradient(self.taught_by(source, step, 0), step=0)
        own = [
            each.grad.flatten() for each in trainee.network.parameters() if each.grad is not None
        ]
        return float(losses[0]), torch.cat(own).double().cpu()

    def seconds_a_step(self) -> dict[Source, float]:
        """Of asking where the teacher is asked, and of the step; the best of some."""
        trainee = self.trainee()
        taken: dict[Source, list[float]] = {source: [] for source in Source}
        for number, step in enumerate(self.steps(TIMED_STEPS + 1)):
            for source, seconds in taken.items():
                started = time.perf_counter()
                trainee.step(self.taught_by(source, step, number), lr=0.0, step=number).cpu()
                seconds.append(time.perf_counter() - started)
        return {source: min(seconds[1:]) for source, seconds in taken.items()}

    def trained(self, steps: int) -> Iterator[dict[str, float]]:
        """Train on both from one start: each step's losses, cached and dense."""
        trainees = {source: self.trainee() for source in (Source.CACHED, Source.DENSE)}
        for number, step in enumerate(self.steps(steps)):
            rate = rate_at(self.recipe, self.plan, number)
            line = {"step": float(number + 1)}
            for source, trainee in trainees.items():
                batch = self.taught_by(source, step, number)
                losses = trainee.step(batch, lr=rate, step=number)
                line[source.value] = float(losses[0])
            yield line


def facts_of(online: Online) -> dict[str, Any]:
    """Facts by name: losses, gradients and seconds of each source."""
    found, seconds = online.at_equal_weights(), online.seconds_a_step()
    facts: dict[str, Any] = {
        "model": online.recipe.student.model,
        "images a step": online.recipe.optimizer.batch_size,
        "k": online.teacher_recipe.topk.k,
        "temperature": online.recipe.distill.temperature,
        "tail": str(online.recipe.distill.tail),
        "device": online.device.type,
    }
    for source, beside in found.items():
        facts[f"{source}: loss"] = float(f"{beside.loss:.6g}")
        facts[f"{source}: seconds a step"] = float(f"{seconds[source]:.4g}")
        if source is not Source.DENSE:
            facts[f"{source}: gradient, relative difference"] = float(
                f"{beside.gradient_difference:.4g}"
            )
            facts[f"{source}: gradient, cosine"] = float(f"{beside.gradient_cosine:.6f}")
    return facts


def draw_curves(lines: Sequence[Mapping[str, float]], file: Path) -> None:
    """Write a PNG of both losses by step.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    steps = [line["step"] for line in lines]
    axes.plot(steps, [line["dense"] for line in lines], color="tab:orange", label="live teacher")
    axes.plot(steps, [line["cached"] for line in lines], "--", color="tab:blue", label="cache")
    axes.set(xlabel="step", ylabel="training loss [nats]")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)
