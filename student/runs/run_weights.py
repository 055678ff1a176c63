"""A run's networks: which of its sets of weights, and how far it was when they were saved."""

from enum import StrEnum

import torch
from torch import nn

from student.models.build import build_student, without_start
from student.runs.checkpoint import Checkpoint, load_checkpoint
from student.runs.run import Run
from teacher_cache.networks.weights import fitted, load_weights


class Weights(StrEnum):
    """Which of a run's sets of weights."""

    AVERAGED = "averaged"
    """The moving average; a run that keeps none has only the other."""
    TRAINED = "trained"
    """Those that the optimizer moved last."""
    BEST = "best"
    """Of the best evaluation: averaged where an average is kept."""


def saved_state(run: Run, weights: Weights = Weights.AVERAGED) -> Checkpoint:
    """The checkpoint that holds a set of weights.

    Raises:
        WeightsError: there is none, or a damaged one.
    """
    return load_checkpoint(run.best if weights is Weights.BEST else run.last)


def weights_kept(run: Run, weights: Weights) -> Weights:
    """The set of weights that a run keeps under this name: trained ones where none are averaged."""
    none = weights is Weights.AVERAGED and run.recipe.ema.decay is None
    return Weights.TRAINED if none else weights


def standing(run: Run, saved: Checkpoint) -> str:
    """How far a run was when a state was saved: `step 10 of 15, unfinished`."""
    steps = f" of {run.steps:,}" if run.steps else ""
    ended = "" if run.summary.exists() else ", unfinished: the run has not ended"
    return f"step {saved.step:,}{steps}{ended}"


def load_network(run: Run, weights: Weights = Weights.AVERAGED) -> nn.Module:
    """A run's network as trained so far: the averaged weights where an average is kept.

    Raises:
        WeightsError: no checkpoint, or a damaged one.
    """
    return network_of(run, saved_state(run, weights), weights)


def network_of(
    run: Run, saved: Checkpoint, weights: Weights, *, size: int | None = None
) -> nn.Module:
    """The network of a state that was read already, in evaluation mode.

    Args:
        run: whose.
        saved: one of its states.
        weights: which of the state's.
        size: pixels a side, other than the run's: position embeddings are resized as timm does.

    Raises:
        WeightsError: the weights are not those of the run's network.
    """
    averaged = None if weights is Weights.TRAINED else saved.ema
    network = build_student(
        run.recipe.student.model,
        num_classes=run.class_count,
        image_size=size or run.size,
        reparam=run.recipe.reparam,
        kwargs=without_start(run.recipe.student.kwargs),
    )
    state, source = averaged or saved.model, str(run.folder)
    if size in (None, run.size):
        load_weights(network, state, source=source)
        return network.eval()
    example = torch.zeros(1, 3, size, size)
    return fitted(network, run.recipe.student.model, state, source=source, example=example).eval()
