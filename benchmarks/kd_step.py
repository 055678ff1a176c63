"""What distillation costs a training step: none, from the cache, with the teacher in the loop.

    python -m benchmarks.kd_step                    (16 images, with the teacher in the loop, too)
    python -m benchmarks.kd_step ROWS [REPEATS]     (others, 16 at a time, without it)

GhostNetV3-1.0x, LAMB, one thread, float32, channels_last; contestants take turns. The online
teacher is BEiTv2-B with random weights. Last, each loss by itself, forward and backward over the
paper's batch: how much longer than cross-entropy, as a share of a supervised step of that batch,
which takes as many times as long as the measured one as it has images.
"""

import sys
from functools import partial

import timm
import torch

from benchmarks.machine import describe, interleaved, print_ratios
from student.data.batches import MicroBatch
from student.losses.criterion import TAILS, Criterion
from student.losses.distillation import distillation_loss
from student.losses.target import SparseTarget
from student.recipe import StudentRecipe
from student.training.trainee import Trainee
from teacher_cache.recipes.document import parse_recipe
from teacher_cache.record import Tail

CLASSES, K, MICRO_BATCH = 1000, 10, 16
PAPERS_BATCH = 2048
TEACHER = "beitv2_base_patch16_224.in1k_ft_in22k_in1k"


def trainee(alpha: float, rows: int) -> Trainee:
    document = {
        "student": {"model": "ghostnetv3_100"},
        "distill": {"alpha": alpha},
        "optimizer": {"batch_size": rows, "micro_batch": min(rows, MICRO_BATCH)},
        "run": {"channels_last": True},
    }
    recipe = parse_recipe(document, StudentRecipe, source="benchmark")
    return Trainee.build(recipe, CLASSES, 224, torch.device("cpu"))


def target_of(rows: int, k: int, generator: torch.Generator) -> SparseTarget:
    logp, ids = torch.randn(rows, CLASSES, generator=generator).log_softmax(1).topk(k)
    return SparseTarget(ids, logp, (1 - logp.exp().sum(1)).log())


def batch(rows: int, *, with_target: bool) -> list[MicroBatch]:
    if rows > MICRO_BATCH:
        return batch(MICRO_BATCH, with_target=with_target) * (rows // MICRO_BATCH)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (rows, 224, 224, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (rows,), generator=generator)
    target = target_of(rows, K, generator) if with_target else None
    return [MicroBatch(labels.numpy(), pixels, labels, target)]


def main(rows: int = 16, repeats: int = 5, *, online: bool = True) -> None:
    torch.set_num_threads(1)
    plain, distilled = trainee(alpha=0.0, rows=rows), trainee(alpha=0.5, rows=rows)
    without, with_target = batch(rows, with_target=False), batch(rows, with_target=True)
    contestants = {
        "supervised": lambda: plain.step(without, lr=0.001, step=1),
        "KD from the cache": lambda: distilled.step(with_target, lr=0.001, step=1),
    }
    if online:
        teacher = timm.create_model(TEACHER, pretrained=False).eval()

        def ask_and_step() -> None:
            with torch.inference_mode():
                teacher(distilled.normalization.images(with_target[0].pixels_BHWC))
            distilled.step(with_target, lr=0.001, step=1)

        contestants["KD with the teacher in the loop"] = ask_and_step
    print(f"kd_step: GhostNetV3-1.0x, {rows} images of 224 px, {CLASSES} classes, k = {K}")
    seconds = interleaved(contestants, repeats=repeats)
    print_ratios(seconds, to="supervised")
    print_losses(seconds["supervised"] / rows * PAPERS_BATCH)


def print_losses(step_s: float) -> None:
    """What each loss adds to cross-entropy, in milliseconds and as a share of a step."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(PAPERS_BATCH, CLASSES, generator=generator).requires_grad_()
    labels = torch.randint(0, CLASSES, (PAPERS_BATCH,), generator=generator)

    def once(target: SparseTarget | None, alpha: float = 0.5, **choice: object) -> None:
        loss = distillation_loss(
            logits, labels, target, alpha=alpha, **{"temperature": 1.0} | choice
        )
        torch.autograd.grad(loss.total, logits)

    contestants = {"cross-entropy": lambda: once(None, alpha=0.0)}
    for k in (K, 200):
        target = target_of(PAPERS_BATCH, k, generator)
        contestants |= {
            f"{criterion}, {tail}, k = {k}": partial(once, target, criterion=criterion, tail=tail)
            for criterion in Criterion
            if criterion is not Criterion.STANDARDIZED  # of all classes alone
            for tail in TAILS[criterion]
            if tail in (Tail.UNIFORM, Tail.BUCKET)
        }
        contestants[f"kl, uniform, tau 2, k = {k}"] = partial(once, target, temperature=2.0)
    seconds = interleaved(contestants, repeats=15)
    print(
        f"losses: {PAPERS_BATCH} rows, {CLASSES} classes; a step of as many images {step_s:.0f} s"
    )
    for name, value in seconds.items():
        more = value - seconds["cross-entropy"]
        share = f"{100 * more / step_s:.3f}% of a step"
        print(f"  {name.ljust(28)}  {1000 * value:8.1f} ms, {1000 * more:8.1f} ms more: {share}")


if __name__ == "__main__":
    print(describe())
    main(*map(int, sys.argv[1:]), online=len(sys.argv) == 1)
