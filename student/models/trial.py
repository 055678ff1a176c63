"""A student tried before it is trained: on one image in eval mode, on two in train mode."""

import copy

import torch
from torch import Tensor, nn

from teacher_cache.errors import UserError


class ModelError(UserError):
    """A student that cannot be built as asked."""


def require_classifier(model: nn.Module, example: Tensor, *, name: str, num_classes: int) -> None:
    """One pass in eval mode, so that a size that cannot work fails now and not in training.

    Raises:
        ModelError: the model does not run on `example`, or its output is not [1, num_classes].
    """
    size = example.shape[-1]
    try:
        with torch.no_grad():
            output = model.eval()(example)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ModelError(
            f"{name} does not run on RGB images of {size} px: choose a larger size "
            "(GhostNetV2 and V3 need more than 32), other student.kwargs or another model "
            f"({error})"
        ) from error
    finally:
        model.train()
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != (1, num_classes):
        raise ModelError(
            f"{name} maps an image to {shape}, expected (1, {num_classes}): choose a classifier, "
            "and leave its head in student.kwargs as it is"
        )


def require_trainable(model: nn.Module, name: str, *, image_size: int, rows: int) -> None:
    """One pass in train mode over a copy, so that what cannot be trained fails before an epoch.

    Args:
        model: on the CPU; neither it nor torch's random state is changed.
        name: what to call it.
        image_size: pixels a side.
        rows: images of a forward pass; two stand for all larger numbers.

    Raises:
        ModelError: BatchNorm cannot normalise a single image, or the output is not logits alone.
    """
    images = torch.zeros(min(rows, 2), 3, image_size, image_size)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            output = copy.deepcopy(model).train()(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ModelError(
                f"{name} at {image_size} px cannot be trained on one image a forward pass, of "
                "which BatchNorm has no variance, expected 2 or more: raise optimizer.micro_batch "
                "or optimizer.batch_size, or start fewer ranks"
            ) from None
    if not isinstance(output, Tensor):
        raise ModelError(
            f"{name} answers with a {type(output).__name__} in training, expected logits alone: "
            "leave aux_logits and the like out of student.kwargs"
        )
