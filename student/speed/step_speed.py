"""How many images a second this machine renders, and a student's training step takes.

B images of a micro-batch, C classes.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from student.data.batches import MicroBatch
from student.recipe import StudentRecipe, StudentViews
from student.speed.throughput import throughput, with_student
from student.training.trainee import Trainee
from teacher_cache.images.index import ImageIndex
from teacher_cache.loading.renderers import ViewRenderer

CPU_BATCH = 16
"""Images of a step on a CPU, where a recipe's hundreds take minutes; a step's cost is linear."""


def data_speed(
    index: ImageIndex,
    recipe: StudentRecipe | None,
    *,
    size: int | None,
    workers: Sequence[int],
    seconds: float,
    device: torch.device,
) -> dict[str, Any]:
    """Facts by name: images/s of the data alone, and, with a recipe, of its step and the workers
    that feed it.

    Args:
        index: the images.
        recipe: the student's; None: the paper's views, and no step.
        size: pixels a side; None: the recipe's.
        workers: the counts of workers to try.
        seconds: how long each figure is measured.
        device: where a step is computed.
    """
    views = recipe.views if recipe else StudentViews()
    side = size or (recipe.student.size if recipe else None) or views.size
    renderer = ViewRenderer(index, views, views.seed, side, views.interpolation, check_size=side)
    facts = throughput(renderer, workers=workers, seconds=seconds)
    if recipe is None:
        return facts
    rate = step_images_per_s(
        recipe, size=side, class_count=index.class_count, device=device, seconds=seconds
    )
    return with_student(facts, recipe.student.model, device.type, rate)


def step_images_per_s(
    recipe: StudentRecipe, *, size: int, class_count: int, device: torch.device, seconds: float
) -> float:
    """Train on random pixels, without a teacher, for about `seconds`."""
    rows = recipe.optimizer.micro_batch or recipe.optimizer.batch_size
    if device.type != "cuda":
        rows = min(rows, CPU_BATCH)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    plain = recipe.distill.model_copy(update={"alpha": 0.0})
    recipe = recipe.model_copy(update={"distill": plain})
    trainee = Trainee.build(recipe, class_count, size, device)
    # on the device already: training copies beside the step before (`student.data.prefetch`)
    pixels_BHWC = torch.randint(0, 256, (rows, size, size, 3), dtype=torch.uint8).to(device)
    labels_B = (torch.arange(rows) % class_count).to(device)
    batch = MicroBatch(np.arange(rows), pixels_BHWC, labels_B, None)
    for step in range(2):  # warm up
        trainee.step([batch], lr=0.0, step=step).cpu()
    started, steps = time.perf_counter(), 0
    while steps < 2 or time.perf_counter() - started < seconds:
        for _ in range(2):
            losses = trainee.step([batch], lr=0.0, step=steps)
            steps += 1
        losses.cpu()  # wait for the device
    return rows * steps / (time.perf_counter() - started)
