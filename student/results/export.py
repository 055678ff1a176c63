"""A run's checkpoint -> folded weights that the plain model library loads, or ONNX; and a card.

B images, C classes.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from student.models.latency import latencies_ms
from student.models.size import parameter_count
from student.results.card import model_card
from student.results.onnx_file import onnx_bytes, onnx_difference, require_onnx
from student.runs.run import Run
from student.runs.run_weights import Weights, network_of, saved_state, standing
from teacher_cache.durable import write_all
from teacher_cache.errors import UserError
from teacher_cache.networks.reparam import fold
from teacher_cache.teacher.normalize import Normalization

TOLERANCE = 1e-4
"""Of the largest logit, or of 1 where all are smaller: what float32 itself rounds."""


class ExportError(UserError):
    """An export that cannot be made as asked."""


class FileTypeError(ExportError):
    """A name for another file than an export writes."""

    exit_code = 2  # usage


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and how well it agrees with what was trained."""

    file: Path
    card: Path
    standing: str
    """How far the run was when these weights were saved."""
    parameters: int
    parameters_folded: int
    largest_difference: float
    """Over the logits of random images, between the network as trained and as written."""
    latency_ms: float
    """One image, one CPU thread, as trained."""
    latency_folded_ms: float
    """The same after folding, measured in turns with it; equal where nothing was to be folded."""

    @property
    def words(self) -> str:
        """What was written, in a line or two for people."""
        agree = f"logits agree to {self.largest_difference:.1e}; one image on one CPU thread takes"
        after = f"{self.latency_folded_ms:.2f} ms"
        if self.parameters == self.parameters_folded:
            said = f"{self.parameters:,} parameters, nothing to fold; {agree} {after}"
        else:
            said = (
                f"{self.parameters:,} parameters in training, {self.parameters_folded:,} folded; "
                f"{agree} {self.latency_ms:.2f} ms before folding, {after} after"
            )
        unfinished = [f"{self.file}: {self.standing}"] if "unfinished" in self.standing else []
        return "\n".join([f"{self.file}: {said}", *unfinished])


def export(run: Run, file: Path, *, weights: Weights = Weights.AVERAGED) -> Exported:
    """Fold a run's network, prove that it computes the same, and write it with its model card.

    The file's metadata say how to prepare an image: size, mean, std, interpolation, crop ratio.
    The card is `file` with `.md` added. Both are written whole, or neither is.

    Raises:
        FileTypeError: neither .safetensors nor .onnx.
        ExportError: no write access, or a network that differs.
        OnnxError: packages are missing, or the network has no ONNX form.
        WeightsError: no checkpoint, or a damaged one.
    """
    _require_possible(file)
    saved = saved_state(run, weights)
    network = network_of(run, saved, weights)
    folded = fold(network)
    metadata = _metadata(run, network)
    difference = _largest_difference(network, folded, run.size)
    _require_same(difference, "the folded network differs from the trained one")
    if file.suffix == ".onnx":
        data = onnx_bytes(folded, size=run.size, metadata=metadata)
        written = onnx_difference(data, folded, size=run.size)
        _require_same(written, "onnxruntime's logits differ from torch's")
        difference = max(difference, written)
    else:
        state = {name: value.contiguous() for name, value in folded.state_dict().items()}
        data = safetensors.torch.save(state, {"format": "pt", **metadata})
    changed = network.state_dict().keys() != folded.state_dict().keys()
    timed = latencies_ms([network, folded] if changed else [folded], size=run.size)
    exported = Exported(
        file=file,
        card=file.with_name(file.name + ".md"),
        standing=standing(run, saved),
        parameters=parameter_count(network),
        parameters_folded=parameter_count(folded),
        largest_difference=difference,
        latency_ms=timed[0],
        latency_folded_ms=timed[-1],
    )
    card = model_card(
        run,
        weights,
        saved,
        file=file.name,
        data=data,
        metadata=metadata,
        figures=_figures(exported),
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_all({exported.card: card.encode(), file: data})
    return exported


def _require_possible(file: Path) -> None:
    if file.suffix not in (".safetensors", ".onnx"):
        raise FileTypeError(
            f"{file}: got file type {file.suffix or 'none'}, expected .safetensors or .onnx: "
            "choose another --out"
        )
    if file.is_dir():
        raise ExportError(f"{file} is a folder, expected the name of a file to write")
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise ExportError(
            f"{folder} cannot be written to: nothing was written; choose another --out"
        )
    if file.suffix == ".onnx":
        require_onnx()


def _metadata(run: Run, network: nn.Module) -> dict[str, str]:
    normalization = Normalization.of(network, torch.device("cpu"))
    return {
        "model": run.recipe.student.model,
        "classes": str(run.class_count),
        "class_ids": json.dumps(dict(run.class_ids)),
        "size": str(run.size),
        "mean": _unit(normalization.mean),
        "std": _unit(normalization.std),
        "interpolation": run.interpolation,
        "crop_ratio": str(run.recipe.evaluation.crop_ratio),
    }


def _figures(exported: Exported) -> Mapping[str, str]:
    if exported.parameters == exported.parameters_folded:
        return {
            "parameters": f"{exported.parameters:,}, nothing to fold",
            "largest difference to training": f"{exported.largest_difference:.1e}",
            "latency": f"{exported.latency_folded_ms:.2f} ms",
        }
    return {
        "parameters": f"{exported.parameters:,} in training, {exported.parameters_folded:,} folded",
        "largest difference to training": f"{exported.largest_difference:.1e}",
        "latency": (
            f"{exported.latency_ms:.2f} ms in training form, "
            f"{exported.latency_folded_ms:.2f} ms folded"
        ),
    }


def _require_same(difference: float, what: str) -> None:
    if not difference <= TOLERANCE:  # NaN too
        raise ExportError(
            f"{what} by {difference:.2e} of the largest logit, expected at most {TOLERANCE:.0e}: "
            "nothing was written; report this model"
        )


def _largest_difference(network: nn.Module, folded: nn.Module, size: int) -> float:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((4, 3, size, size), generator=generator)
    with torch.inference_mode():
        expected_BC, got_BC = network(images), folded(images)
    return float((expected_BC - got_BC).abs().max() / expected_BC.abs().max().clamp_min(1.0))


def _unit(values: torch.Tensor) -> str:
    return " ".join(f"{value / 255:.6g}" for value in values.flatten().tolist())
