"""Top-1 and top-5 of a network on centre crops.

B images, C classes.
"""

from dataclasses import replace
from typing import Any

import torch

from student.runs.run import Run
from student.runs.run_weights import Weights, network_of, saved_state, standing, weights_kept
from student.training.evaluation import evaluate, evaluation_of
from teacher_cache.images.index import ImageIndex
from teacher_cache.networks.reparam import fold
from teacher_cache.recipes.cache_recipe import UnreadableImages
from teacher_cache.teacher.normalize import Normalization


def evaluate_run(
    run: Run,
    validation: ImageIndex,
    device: torch.device,
    weights: Weights = Weights.AVERAGED,
    *,
    unreadable: UnreadableImages | None = None,
    size: int | None = None,
    crop_ratio: float | None = None,
) -> dict[str, Any]:
    """Facts by name: accuracy of a run's weights, as trained and folded, and how far it got.

    Args:
        run: whose weights.
        validation: what they are shown.
        device: where.
        weights: which of the run's.
        unreadable: what becomes of images that do not decode; None: as in training.
        size: pixels a side; None: the run's.
        crop_ratio: size over the shorter side of the resized image; None: the recipe's.

    Raises:
        WeightsError: the run has no checkpoint.
        ImagesError: an image that does not decode, or cannot be read.
    """
    saved = saved_state(run, weights)
    network = network_of(run, saved, weights, size=size).to(device)
    run = replace(run, size=size or run.size)
    folded = fold(network)
    own = run.recipe.evaluation
    section = own.model_copy(update={"crop_ratio": crop_ratio or own.crop_ratio})
    recipe = run.recipe.model_copy(
        update={"images": unreadable or run.recipe.images, "evaluation": section}
    )
    evaluation = evaluation_of(recipe, validation, size=run.size, interpolation=run.interpolation)
    trained, plain = evaluate([network, folded], evaluation, Normalization.of(network, device))
    return {
        "run": str(run.folder),
        "model": run.recipe.student.model,
        "weights": str(weights_kept(run, weights)),
        "standing": standing(run, saved),
        "size": run.size,
        "crop ratio": section.crop_ratio,
        "images": len(validation) - len(evaluation.unreadable.rows),
        "top1": round(trained.top1, 4),
        "top5": round(trained.top5, 4),
        "folded_top1": round(plain.top1, 4),
        "folded_top5": round(plain.top5, 4),
    }
