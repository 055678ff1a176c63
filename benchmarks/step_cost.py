"""What re-parameterization costs a training step: N = 1, 3, 5 against the plain network.

    python -m benchmarks.step_cost [SIZE [REPEATS]]        (112 px, 5: four minutes on one core)

GhostNetV2-1.0x and the same with GhostNetV3's branches; a whole supervised step: forward,
backward, LAMB, EMA. One thread, float32; contiguous and channels_last take turns in one run.
"""

import sys

import torch

from benchmarks.machine import describe, interleaved, print_ratios
from student.data.batches import MicroBatch
from student.recipe import StudentRecipe
from student.training.trainee import Trainee
from teacher_cache.recipes.document import parse_recipe

ROWS, CLASSES = 16, 1000


def trainee(branches: int | None, layout: str, size: int) -> Trainee:
    # With no branches asked for, ghostnetv3_* is timm's own training form: the plain one is V2.
    model = "ghostnetv2_100" if branches is None else "ghostnetv3_100"
    document = {
        "student": {"model": model, "kwargs": {"drop_rate": 0.0}},
        "distill": {"alpha": 0.0},
        "optimizer": {"batch_size": ROWS},
        "reparam": {"branches": branches},
        "run": {"channels_last": layout == "channels_last"},
    }
    recipe = parse_recipe(document, StudentRecipe, source="benchmark")
    return Trainee.build(recipe, CLASSES, size, torch.device("cpu"))


def main(size: int = 112, repeats: int = 5) -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (ROWS, size, size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    batch = MicroBatch(labels.numpy(), pixels, labels, None)
    contestants = {}
    for branches in (None, 1, 3, 5):
        for layout in ("contiguous", "channels_last"):
            label = "plain" if branches is None else f"N = {branches}"
            student = trainee(branches, layout, size)
            contestants[f"{label}, {layout}"] = lambda student=student: student.step(
                [batch], lr=0.001, step=1
            )
    print(f"step_cost: GhostNetV2-1.0x, {ROWS} images of {size} px, {repeats} turns")
    seconds = interleaved(contestants, repeats=repeats)
    for layout in ("contiguous", "channels_last"):
        own = {name: value for name, value in seconds.items() if name.endswith(layout)}
        print_ratios(own, to=f"plain, {layout}")
    first, second = (seconds[f"plain, {layout}"] for layout in ("contiguous", "channels_last"))
    print(f"  plain, contiguous over channels_last: {first / second:.2f}")


if __name__ == "__main__":
    print(describe())
    main(*map(int, sys.argv[1:]))
