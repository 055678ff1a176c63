"""Saved states of a run: written whole or not at all, read without unpickling code."""

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from teacher_cache.durable import write_atomic
from teacher_cache.networks.checkpoints import WeightsError


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that continues a run; torch's random state is not in it (`order.step_seed`)."""

    step: int
    """Optimizer steps done."""
    model: dict[str, Any]
    ema: dict[str, Any] | None
    optimizer: dict[str, Any] | None
    """None in `best`, which is not continued from."""
    best_top1: float
    """The best top-1 so far, in percent; -1 before the first evaluation."""
    seconds: float
    """Wall time that training took so far, evaluations and earlier runs included."""


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `path` atomically and durably."""
    buffer = io.BytesIO()
    torch.save(asdict(checkpoint), buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read what `save_checkpoint` wrote, onto the CPU.

    Raises:
        WeightsError: not such a file, or a damaged one.
    """
    try:
        return Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise WeightsError(f"{path}: no checkpoint there: train first") from None
    except Exception as error:  # torch.load raises a type of its own for each kind of damage
        raise WeightsError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}): restore it, or "
            "remove the run and train again"
        ) from error
