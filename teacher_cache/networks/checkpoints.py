"""Files of weights, as they lie about: safetensors, and what `torch.save` wrote without code.

Trainers wrap what they save. Taken are: a bare state dict; one under a name such as `state_dict`
or `model`, with or without an average beside it (timm, DeiT, Lightning, this project's own runs);
and names that DDP, torch.compile, FSDP or an averaged model put before each tensor.
"""

import pickle
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from teacher_cache.errors import UserError, shortened


class WeightsError(UserError):
    """Weights that cannot be read, or that belong to another architecture."""


AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Under which names trainers keep the moving average; timm takes it first, too."""

TRAINED = (
    "state_dict",
    "model",
    "model_state",
    "model_state_dict",
    "module",
    "network",
    "net",
    "weights",
    "params",
)
"""Under which names trainers keep the weights that the optimizer moved."""


def read_checkpoint(path: Path, *, use_ema: bool = True) -> dict[str, Tensor]:
    """Read the state dict out of a file, its names freed of wrappers.

    Args:
        path: `.safetensors`, or any file of `torch.save` that `weights_only=True` opens.
        use_ema: of a file that holds both, take the average and not the weights as trained last.

    Raises:
        WeightsError: no such file, another format, objects that only code could make, or no state
            dict in it.
    """
    if not path.is_file():
        raise WeightsError(f"checkpoint {path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return _unwrapped(load_file(path))
        document = torch.load(path, map_location="cpu", weights_only=True)
    except _READ_ERRORS as error:
        raise WeightsError(_unreadable(path, error)) from None
    return _unwrapped(_state_dict(document, path, use_ema=use_ema))


_READ_ERRORS = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
    OSError,
)


def _state_dict(document: Any, path: Path, *, use_ema: bool) -> Mapping[str, Tensor]:
    """The state dict in what was read; a wrapper may hold another one."""
    while not _is_state_dict(document):
        if not isinstance(document, dict):
            raise WeightsError(
                f"checkpoint {path}: got {shortened(document)}, expected a state dict of tensors"
            )
        names = [*(AVERAGES if use_ema else ()), *TRAINED]
        inner = [document[name] for name in names if isinstance(document.get(name), dict)]
        if not inner:
            kept = ", ".join(map(str, list(document)[:8])) or "nothing"
            raise WeightsError(
                f"checkpoint {path}: holds {kept}, expected a state dict of tensors, bare or as "
                f"one of {', '.join(names)}: save the model's state_dict() alone"
            )
        document = inner[0]
    found: dict[str, Tensor] = document
    return found


def _is_state_dict(document: object) -> bool:
    return (
        isinstance(document, dict)
        and len(document) > 0
        and all(isinstance(name, str) for name in document)
        and all(isinstance(value, Tensor) for value in document.values())
    )


# Parts of names that stand for a wrapper and not for a module of the network.
_WRAPPER = re.compile(r"(?:^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# What profilers (thop) and torch's AveragedModel leave among the weights.
_NO_WEIGHT = re.compile(r"(?:^|\.)(total_ops|total_params|n_averaged)$")


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what DDP, torch.compile, FSDP and profilers added, in whatever order."""
    named = {_WRAPPER.sub("", name): v for name, v in state.items() if not _NO_WEIGHT.search(name)}
    while named and all(name.startswith("module.") for name in named):
        named = {name.removeprefix("module."): value for name, value in named.items()}
    return named


_CONVERSION = (
    "import torch; d = torch.load({file!r}, map_location='cpu', weights_only=False); "
    "d = d.state_dict() if hasattr(d, 'state_dict') else d; "
    "t = lambda v: isinstance(v, torch.Tensor); "
    "torch.save({{k: v for k, v in d.items() if t(v) or isinstance(v, dict) and "
    "all(map(t, v.values()))}}, {out!r})"
)
_SCRIPT_CONVERSION = (
    "import torch; torch.save(torch.jit.load({file!r}, 'cpu').state_dict(), {out!r})"
)


def _unreadable(path: Path, error: Exception) -> str:
    """Why a file cannot be read, and how to convert it where it can be."""
    expected = "expected .safetensors, or a state dict that torch.load(weights_only=True) opens"
    if "TorchScript" in str(error):
        command = _command(_SCRIPT_CONVERSION, path)
        return f"checkpoint {path}: is TorchScript, {expected}: convert it with: {command}"
    brought = _code_in(path) if isinstance(error, pickle.UnpicklingError) else []
    if brought:
        return (
            f"checkpoint {path}: holds more than tensors ({', '.join(brought[:4])}), which only "
            f"running code opens; {expected}: if you trust whoever made it, and only then, convert "
            f"it with: {_command(_CONVERSION, path)}"
        )
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"checkpoint {path}: cannot be read ({reason}): {expected}"


def _code_in(path: Path) -> list[str]:
    """What a pickle would import and call; nothing is imported or called."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # noqa: BLE001 - a damaged file fails in as many ways as there are bytes
        return []


def _command(code: str, path: Path) -> str:
    filled = code.format(file=str(path), out=f"{path.name}.weights.pt")
    return f"python -c {shlex.quote(filled)}"
