"""Network weights from local files: safetensors, or a state dict; never an unsafe pickle."""

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from teacher_cache.errors import UserError


class WeightsError(UserError):
    """Weights that cannot be read, or that belong to another architecture."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from `.safetensors`, or from any file of `torch.save` holding tensors only.

    Raises:
        WeightsError: no such file, another format, or objects besides tensors.
    """
    if not path.is_file():
        raise WeightsError(f"checkpoint {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        document = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"checkpoint {path}: cannot be read ({reason}): expected .safetensors, or a state dict "
            "that torch.load(weights_only=True) opens"
        ) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(document, dict) and isinstance(document.get(wrapper), dict):
            document = document[wrapper]
    if not isinstance(document, dict) or not all(isinstance(v, Tensor) for v in document.values()):
        raise WeightsError(f"checkpoint {path}: expected a state dict of tensors")
    return document


# What only the training form of a re-parameterized network has: ours, and timm's GhostNetV3.
_BRANCH = re.compile(r"\.convs\.\d+\.(conv|norm)\.|_rpr_(conv|scale|skip)\.")


def load_weights(network: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load a state dict whose names and shapes all fit.

    Raises:
        WeightsError: naming what is missing, unknown, or of another shape.
    """
    own = network.state_dict()
    _require_same_form(own, state, source)
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    reshaped = [
        f"{name} {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = [
        f"{len(names)} {what} (such as {names[0]})"
        for what, names in (
            ("missing", missing),
            ("unknown", unknown),
            ("of another shape", reshaped),
        )
        if names
    ]
    if problems:
        raise WeightsError(
            f"{source} holds the weights of another network than {type(network).__name__}: of "
            f"{len(own)} tensors " + ", ".join(problems) + ": name the model it was saved from"
        )
    network.load_state_dict(dict(state))


def _require_same_form(own: Iterable[str], state: Iterable[str], source: str) -> None:
    mine, theirs = ([name for name in names if _BRANCH.search(name)] for names in (own, state))
    if theirs and not mine:
        raise WeightsError(
            f"{source} holds the training form of a re-parameterized network, with parallel "
            f"branches (such as {theirs[0]}), expected the folded form: fold it with 'cli.py "
            "export RUN --out FILE.safetensors' and load that file"
        )
    if mine and not theirs:
        raise WeightsError(
            f"{source} holds a folded or plain network, expected the training form with parallel "
            f"branches (such as {mine[0]}): folding cannot be undone; leave reparam.branches out, "
            "or name the run's own last.pt"
        )
