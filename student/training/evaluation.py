"""Top-1 and top-5 of networks on centre crops.

B images, C classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from student.data.unreadable import Unreadable
from student.ranks import ALONE, Ranks
from student.recipe import StudentRecipe
from teacher_cache.images.index import ImageIndex, ImagesError
from teacher_cache.loading.loader import LoaderSettings, rendered
from teacher_cache.loading.queue import Rendered
from teacher_cache.loading.renderers import CenterRenderer, Request
from teacher_cache.networks.device_memory import out_of_memory_in_words
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
    unreadable: Unreadable


def evaluation_of(
    recipe: StudentRecipe, index: ImageIndex, *, size: int, interpolation: str
) -> Evaluation:
    """The recipe's evaluation of images at `size` pixels a side."""
    renderer = CenterRenderer(index, size, recipe.evaluation.crop_ratio, interpolation)
    loader = LoaderSettings(
        recipe.loader.workers, recipe.loader.memory_mb, lower="evaluation.batch_size"
    )
    unreadable = Unreadable(index, recipe.images)
    return Evaluation(index, renderer, recipe.evaluation.batch_size, loader, unreadable)


def require_ready(data: Evaluation, ranks: Ranks = ALONE) -> None:
    """Read and decode every image once, as an evaluation will, before hours are spent on training.

    Raises:
        ImagesError: as `evaluate`.
        UserError: two batches do not fit into the loader's memory.
    """
    for images in _batches(data, ranks):
        data.unreadable.readable(images)


def _batches(data: Evaluation, ranks: Ranks) -> Iterator[Rendered]:
    """A rank's share of the validation set's batches."""
    count = -(-len(data.index) // data.batch_size)
    requests = [Request(rows, (0,)) for rows in np.array_split(np.arange(len(data.index)), count)]
    own = requests[ranks.number :: ranks.count]
    largest = (1, max(len(request.rows) for request in requests))
    with rendered(data.renderer, own, data.loader, largest=largest) as stream:
        yield from stream


def evaluate(
    networks: Sequence[nn.Module],
    data: Evaluation,
    normalization: Normalization,
    ranks: Ranks = ALONE,
) -> list[Accuracy]:
    """Show every image once to every network, in evaluation mode; their modes are restored.

    Ranks take turns at the batches and add up their hits: the batches are those of one process.
    Images that are left out count for nothing.

    Raises:
        ImagesError: an image that does not decode, unless the recipe leaves such images out.
        RankLost: another rank has ended.
    """
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    hits, shown = np.zeros((len(networks), 2), np.int64), 0
    with torch.inference_mode():
        for images in _batches(data, ranks):
            rows, pixels_BHWC = images.request.rows, images.pixels_GBHWC[0]
            readable_B = data.unreadable.readable(images)
            if not readable_B.all():
                rows, pixels_BHWC = rows[readable_B], pixels_BHWC[torch.from_numpy(readable_B)]
            if not len(rows):
                continue
            shown += len(rows)
            batch = normalization.images(pixels_BHWC)
            labels_B = torch.from_numpy(data.index.labels[rows]).to(batch.device)
            what = f"an evaluation of {len(rows)} images at once"
            with out_of_memory_in_words(what, "lower evaluation.batch_size (it changes no figure)"):
                for number, network in enumerate(networks):
                    hits[number] += _hits(network(batch), labels_B)
    for network, mode in zip(networks, modes, strict=True):
        network.train(mode)
    found = ranks.gather((hits, shown))
    hits, shown = np.sum([each for each, _ in found], axis=0), sum(each for _, each in found)
    if not shown:
        raise ImagesError(f"{data.index.root}: no image of {len(data.index)} can be read")
    return [Accuracy(*(100.0 * row / shown).tolist()) for row in hits]


def _hits(logits_BC: Tensor, labels_B: Tensor) -> np.ndarray:
    """How many labels are the best class, and among the best five."""
    best = logits_BC.float().topk(min(5, logits_BC.shape[1]), dim=1).indices
    found = best == labels_B[:, None]
    return np.array([int(found[:, 0].sum()), int(found.any(dim=1).sum())])
