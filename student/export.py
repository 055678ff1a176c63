"""A run's checkpoint -> folded weights that the plain model library loads.

B images, C classes.
"""

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from student.reparam import fold
from student.run import Run, load_network
from student.size import parameter_count
from teacher_cache.durable import write_atomic
from teacher_cache.errors import UserError
from teacher_cache.normalize import Normalization


class ExportError(UserError):
    """An export that cannot be made as asked."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and how well it agrees with what was trained."""

    file: Path
    parameters: int
    parameters_folded: int
    largest_difference: float
    """Over the logits of random images, relative to the largest logit."""


def export(run: Run, file: Path) -> Exported:
    """Fold a run's network, prove that it computes the same, and write it as safetensors.

    The metadata say how to prepare an image: size, mean, std, interpolation, crop ratio.

    Raises:
        ExportError: another file type, or a folded network that differs.
        WeightsError: no checkpoint, or a damaged one.
    """
    if file.suffix != ".safetensors":
        raise ExportError(f"{file}: got file type {file.suffix or 'none'}, expected .safetensors")
    network = load_network(run)
    folded = fold(network)
    difference = _largest_difference(network, folded, run.size)
    if not difference <= 1e-4:
        raise ExportError(
            f"the folded network differs from the trained one by {difference:.2e} of its largest "
            "logit, expected at most 1e-4: nothing was written; report this model"
        )
    normalization = Normalization.of(network, torch.device("cpu"))
    metadata = {
        "format": "pt",
        "model": run.recipe.student.model,
        "classes": str(run.class_count),
        "size": str(run.size),
        "mean": _unit(normalization.mean),
        "std": _unit(normalization.std),
        "interpolation": run.interpolation,
        "crop_ratio": str(run.recipe.evaluation.crop_ratio),
    }
    state = {name: value.contiguous() for name, value in folded.state_dict().items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, safetensors.torch.save(state, metadata))
    return Exported(file, parameter_count(network), parameter_count(folded), difference)


def _largest_difference(network: nn.Module, folded: nn.Module, size: int) -> float:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((4, 3, size, size), generator=generator)
    with torch.inference_mode():
        expected_BC, got_BC = network(images), folded(images)
    return float((expected_BC - got_BC).abs().max() / expected_BC.abs().max().clamp_min(1e-12))


def _unit(values: torch.Tensor) -> str:
    return " ".join(f"{value / 255:.6g}" for value in values.flatten().tolist())
