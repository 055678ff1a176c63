"""What channels_last brings on a CPU in the small recipes, and what it costs.

    python -m benchmarks.memory_format [REPEATS]        (15: three minutes on one core)

A whole supervised step of each recipe (forward, backward, LAMB, average) in both memory formats,
taking turns; and how far one step's gradient is from float64's. One thread, float32.
"""

import copy
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.machine import describe, interleaved, print_ratios
from student.data.batches import MicroBatch
from student.recipe import StudentRecipe
from student.training.trainee import Trainee
from teacher_cache.recipes.document import load_recipe

RECIPES = {
    "digits-teacher": 10,
    "digits-student": 10,
    "digits-ghostnetv3": 10,
    "small-teacher": 10,
    "small-student": 10,
}
"""And how many classes the data has."""


def trainee(recipe: StudentRecipe, classes: int, size: int, *, channels_last: bool) -> Trainee:
    run = recipe.run.model_copy(update={"channels_last": channels_last})
    recipe = recipe.model_copy(update={"run": run})
    return Trainee.build(recipe, classes, size, torch.device("cpu"))


def gradient(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    network.zero_grad()
    cross_entropy(network.train()(images), labels).backward()
    return torch.cat([weight.grad.double().flatten() for weight in network.parameters()])


def rounding(found: Trainee, batch: MicroBatch) -> float:
    """The relative distance of a batch's gradient from float64's."""
    torch.manual_seed(0)
    images = found.normalization.images(batch.pixels_BHWC)
    exact = gradient(copy.deepcopy(found.network).double(), images.double(), batch.labels_B)
    rounded = gradient(copy.deepcopy(found.network), images, batch.labels_B)
    return float((rounded - exact).norm() / exact.norm())


def main(repeats: int = 15) -> None:
    torch.set_num_threads(1)
    for name, classes in RECIPES.items():
        recipe = load_recipe(Path(name), StudentRecipe, package="student")
        size, rows = recipe.student.size or 32, recipe.optimizer.batch_size
        generator = torch.Generator().manual_seed(0)
        shape = (rows, size, size, 3)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, classes, (rows,), generator=generator)
        batch = MicroBatch(labels.numpy(), pixels, labels, None)
        print(f"{recipe.student.model} ({Path(name).stem}), {rows} images of {size} px")
        contestants = {}
        for layout in ("contiguous", "channels_last"):
            found = trainee(recipe, classes, size, channels_last=layout == "channels_last")
            print(f"  {layout}: gradient off by {rounding(found, batch):.1e}")
            found.recipe = found.recipe.model_copy(
                update={"distill": recipe.distill.model_copy(update={"alpha": 0.0})}
            )
            contestants[layout] = lambda it=found, on=batch: it.step([on], lr=0.001, step=1)
        print_ratios(interleaved(contestants, repeats=repeats), to="contiguous")


if __name__ == "__main__":
    print(describe())
    main(*map(int, sys.argv[1:]))
