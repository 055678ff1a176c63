"""How many images a second a student's training step takes on a device.

B images of a micro-batch, C classes.
"""

import time

import numpy as np
import torch

from student.batches import MicroBatch
from student.recipe import StudentRecipe
from student.trainee import Trainee

CPU_BATCH = 16
"""Images of a step on a CPU, where a recipe's hundreds take minutes; a step's cost is linear."""


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
    # on the device already: training copies beside the step before (`student.feed`)
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
