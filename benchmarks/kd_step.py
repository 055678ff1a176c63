"""What distillation costs a training step: none, from the cache, with the teacher in the loop.

GhostNetV3-1.0x, LAMB, one thread, float32; the online teacher is BEiTv2-B with random weights.
"""

import timm
import torch

from benchmarks.machine import describe, interleaved, print_ratios
from student.batches import MicroBatch
from student.loss import SparseTarget
from student.recipe import StudentRecipe
from student.trainee import Trainee
from teacher_cache.recipe import parse_recipe

ROWS, CLASSES, K = 16, 1000, 20
TEACHER = "beitv2_base_patch16_224.in1k_ft_in22k_in1k"


def trainee(alpha: float) -> Trainee:
    document = {
        "student": {"model": "ghostnetv3_100"},
        "distill": {"alpha": alpha},
        "optimizer": {"batch_size": ROWS},
        "run": {"channels_last": True},
    }
    recipe = parse_recipe(document, StudentRecipe, source="benchmark")
    return Trainee.build(recipe, CLASSES, 224, torch.device("cpu"))


def batch(*, with_target: bool) -> MicroBatch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (ROWS, 224, 224, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    logp, ids = torch.randn(ROWS, CLASSES, generator=generator).log_softmax(1).topk(K)
    tail = (1 - logp.exp().sum(1)).log()
    target = SparseTarget(ids, logp, tail) if with_target else None
    return MicroBatch(labels.numpy(), pixels, labels, target)


def main() -> None:
    torch.set_num_threads(1)
    plain, distilled = trainee(alpha=0.0), trainee(alpha=0.5)
    teacher = timm.create_model(TEACHER, pretrained=False).eval()
    without, with_target = batch(with_target=False), batch(with_target=True)

    def online() -> None:
        with torch.inference_mode():
            teacher(distilled.normalization.images(with_target.pixels_BHWC))
        distilled.step([with_target], lr=0.001, step=1)

    contestants = {
        "supervised": lambda: plain.step([without], lr=0.001, step=1),
        "KD from the cache": lambda: distilled.step([with_target], lr=0.001, step=1),
        "KD with the teacher in the loop": online,
    }
    print(f"kd_step: GhostNetV3-1.0x, {ROWS} images of 224 px, {CLASSES} classes, k = {K}")
    print_ratios(interleaved(contestants, repeats=5), to="supervised")


if __name__ == "__main__":
    print(describe())
    main()
