"""Top-1 and top-5 of networks on centre crops.

B images, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from student.ranks import ALONE, Ranks
from student.recipe import StudentRecipe
from teacher_cache.images.index import ImageIndex, ImagesError
from teacher_cache.loading.loader import LoaderSettings, rendered
from teacher_cache.loading.renderers import CenterRenderer, Request
from teacher_cache.teacher.normalize import Normalization


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


def _hits(logits_BC: Tensor, labels_B: Tensor) -> np.ndarray:
    """How many labels are the best class, and among the best five."""
    best = logits_BC.float().topk(min(5, logits_BC.shape[1]), dim=1).indices
    found = best == labels_B[:, None]
    return np.array([int(found[:, 0].sum()), int(found.any(dim=1).sum())])
