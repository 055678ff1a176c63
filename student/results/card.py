"""The model card: what an exported file is, from what it was made, and how to open it."""

import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from student.data.training_data import COUNTS
from student.models.build import plain_source
from student.runs.checkpoint import Checkpoint
from student.runs.metrics import read_metrics
from student.runs.run import Run
from student.runs.run_weights import Weights, standing, weights_kept

# What computed the weights and the figures; the last three where they are installed.
_LIBRARIES = ("torch", "torchvision", "timm", "safetensors", "onnx", "onnxscript", "onnxruntime")


def model_card(
    run: Run,
    weights: Weights,
    saved: Checkpoint,
    *,
    file: str,
    data: bytes,
    metadata: Mapping[str, str],
    figures: Mapping[str, str],
) -> str:
    """Markdown.

    Args:
        run: the run that was exported.
        weights: which of its weights.
        saved: the state that held them.
        file: the exported file's name.
        data: its bytes.
        metadata: its metadata.
        figures: what was measured at export, by name.
    """
    recipe = run.recipe
    facts = {
        "model": f"`{recipe.student.model}`, {run.class_count} classes",
        "SHA-256": f"`{hashlib.sha256(data).hexdigest()}`, {len(data):,} bytes",
        "weights": (
            f"{weights_kept(run, weights)} ({standing(run, saved)}; {_accuracies(run, saved.step)})"
        ),
        **figures,
        "input": (
            f"RGB, {run.size} x {run.size} px: resize the shorter side to size / crop ratio = "
            f"{run.size} / {metadata['crop_ratio']} ({metadata['interpolation']}, antialiased), "
            "crop the centre, scale to 0-1, normalise"
        ),
        "mean": metadata["mean"],
        "std": metadata["std"],
        **_origin(run),
        "versions": ", ".join(_versions()),
    }
    lines = [
        f"# {recipe.student.model}, folded",
        "",
        "Written by Retort's `export`. Latency: one image, one CPU thread, float32, median.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items()),
        "",
        "## Opening it",
        "",
        "```python",
        *_opening(run, file),
        "```",
        "",
        "## Recipe",
        "",
        "```json",
        json.dumps(_recipe(run), indent=1),
        "```",
        "",
    ]
    return "\n".join(lines)


def _recipe(run: Run) -> dict[str, Any]:
    """The run's recipe, without what its cache decided instead, and without folders' names."""
    recipe = run.recipe.model_dump(mode="json")
    if run.recipe.student.checkpoint is not None:
        recipe["student"]["checkpoint"] = run.recipe.student.checkpoint.name
    if "cache recipe" in run.data_digest:
        recipe["views"] = {"reuse": run.recipe.views.reuse}
    return recipe


def _origin(run: Run) -> dict[str, str]:
    """Where the run's data came from: digests, as in the run's folder."""
    origin = {
        name if name in COUNTS else f"{name} digest": value if name in COUNTS else f"`{value}`"
        for name, value in run.data_digest.items()
    }
    if "cache recipe" not in run.data_digest:
        origin["teacher"] = "none: trained without a cache"
    return origin


def _accuracies(run: Run, step: int) -> str:
    """What the last evaluation up to a step measured."""
    names = ("ema_top1", "ema_top5", "top1", "top5")
    found = [line for line in read_metrics(run.metrics) if "top1" in line and line["step"] <= step]
    last = found[-1] if found else {}
    return ", ".join(f"{name} {last[name]:.2f}%" for name in names if name in last) or (
        "never evaluated"
    )


def _versions() -> list[str]:
    found = [f"Python {platform.python_version()}"]
    for name in ("retort", *_LIBRARIES):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def _opening(run: Run, file: str) -> list[str]:
    if file.endswith(".onnx"):
        return [
            "import onnxruntime",
            "",
            f"session = onnxruntime.InferenceSession({file!r})",
            'logits = session.run(None, {"images": images})[0]  # float32 [B, 3, '
            f"{run.size}, {run.size}], normalised; any B",
        ]
    student = run.recipe.student
    imports, call = plain_source(
        student.model, num_classes=run.class_count, image_size=run.size, kwargs=student.kwargs
    )
    return [
        imports,
        "from safetensors.torch import load_file",
        "",
        f"model = {call}",
        f"model.load_state_dict(load_file({file!r}), strict=True)",
        "model.eval()",
    ]
