"""Top-1 and top-5 of a network on centre crops.

B images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from student.ranks import ALONE, Ranks
from student.recipe import StudentRecipe
from student.reparam import fold
from student.run import Run, Weights, kept, network_of, saved_state, standing
from teacher_cache.images import ImageIndex, ImagesError
from teacher_cache.loader import CenterRenderer, LoaderSettings, Request, rendered
from teacher_cache.normalize import Normalization


@dataclass(frozen=True, slots=True)
class Accuracy:
    """In percent."""

    top1: float
    top5: float


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """A validation set, ready to be shown to networks."""

    index: ImageIndex
    renderer: CenterRenderer
    batch_size: int
    loader: LoaderSettings


def evaluation_of(
    recipe: StudentRecipe, index: ImageIndex, *, size: int, interpolation: str
) -> Evaluation:
    """The recipe's evaluation of images at `size` pixels a side."""
    renderer = CenterRenderer(index, size, recipe.evaluation.crop_ratio, interpolation)
    loader = LoaderSettings(recipe.loader.workers, recipe.loader.memory_mb)
    return Evaluation(index, renderer, recipe.evaluation.batch_size, loader)


def evaluate(
    networks: Sequence[nn.Module],
    data: Evaluation,
    normalization: Normalization,
    ranks: Ranks = ALONE,
) -> list[Accuracy]:
    """Show every image once to every network, in evaluation mode; their modes are restored.

    Ranks take turns at the batches and add up their hits: the batches are those of one process.

    Raises:
        ImagesError: an image that cannot be read.
        RankLost: another rank has ended.
    """
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    hits = np.zeros((len(networks), 2), np.int64)
    requests = [
        Request(rows, (0,))
        for rows in np.array_split(
            np.arange(len(data.index)), -(-len(data.index) // data.batch_size)
        )
    ][ranks.number :: ranks.count]
    with torch.inference_mode():
        largest = (1, data.batch_size)
        for images in rendered(data.renderer, requests, data.loader, largest=largest):
            for row, reason in images.unreadable.items():
                raise ImagesError(f"{data.index.name_of(row)}: {reason}: repair or remove it")
            batch = normalization.images(images.pixels_GBHWC[0])
            labels_B = torch.from_numpy(data.index.labels[images.request.rows]).to(batch.device)
            for number, network in enumerate(networks):
                hits[number] += _hits(network(batch), labels_B)
    for network, mode in zip(networks, modes, strict=True):
        network.train(mode)
    hits = np.sum(ranks.gather(hits), axis=0)
    return [Accuracy(*(100.0 * row / len(data.index)).tolist()) for row in hits]


def evaluate_run(
    run: Run,
    validation: ImageIndex,
    device: torch.device,
    weights: Weights = Weights.AVERAGED,
) -> dict[str, Any]:
    """Facts by name: accuracy of a run's weights, as trained and folded, and how far it got.

    Raises:
        WeightsError: the run has no checkpoint.
        ImagesError: an image that cannot be read.
    """
    saved = saved_state(run, weights)
    network = network_of(run, saved, weights).to(device)
    folded = fold(network)
    evaluation = evaluation_of(
        run.recipe, validation, size=run.size, interpolation=run.interpolation
    )
    trained, plain = evaluate([network, folded], evaluation, Normalization.of(network, device))
    return {
        "run": str(run.folder),
        "model": run.recipe.student.model,
        "weights": str(kept(run, weights)),
        "standing": standing(run, saved),
        "images": len(validation),
        "top1": round(trained.top1, 4),
        "top5": round(trained.top5, 4),
        "folded_top1": round(plain.top1, 4),
        "folded_top5": round(plain.top5, 4),
    }


def _hits(logits_BC: Tensor, labels_B: Tensor) -> np.ndarray:
    """How many labels are the best class, and among the best five."""
    best = logits_BC.float().topk(min(5, logits_BC.shape[1]), dim=1).indices
    found = best == labels_B[:, None]
    return np.array([int(found[:, 0].sum()), int(found.any(dim=1).sum())])
