"""Build a student by name: any timm classifier, any torchvision one, the paper's GhostNetV3.

Names: timm's (`mobilenetv2_100`, `deit_tiny_patch16_224`), or torchvision's after a prefix
(`torchvision/shufflenet_v2_x1_0`).
"""

import difflib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
import torchvision.models
from torch import Tensor, nn

from teacher_cache.errors import UserError
from teacher_cache.networks.branches import Folded
from teacher_cache.networks.reparam import ReparamSpec, expand, is_reparameterized_by_timm

logger = logging.getLogger(__name__)

TORCHVISION = "torchvision/"

# GhostNetV3 is GhostNetV2 with training branches on these three of its convolutions (GhostNetV3,
# arXiv 2404.11202, re-parameterization; the official code leaves the same others alone).
GHOSTNETV3_SELECT = ("primary_conv", "cheap_operation", "conv_dw")


class ModelError(UserError):
    """A student that cannot be built as asked."""


class UnknownModel(ModelError):
    """No model has this name; the message suggests the nearest ones."""


def build_student(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    reparam: ReparamSpec,
    kwargs: Mapping[str, Any],
) -> nn.Module:
    """Build a student in train mode on the CPU, expanded as `reparam` asks.

    Weights are drawn from torch's global generator: seed it before. A timm `ghostnetv3_*` comes in
    timm's own training form where `reparam` leaves it alone or asks for what it is (three
    branches, 1x1, identity); any other `reparam` makes the same network by surgery on GhostNetV2.
    Either way `teacher_cache.networks.reparam.fold` gives timm's deployed form, and dropout is 0
    unless `kwargs` says otherwise (timm's default is 0.2, the paper's code has none).

    Args:
        name: a timm name, or `torchvision/` and a torchvision classifier's.
        num_classes: the data's class count, 2 or more.
        image_size: the side of the square inputs in pixels; the model is tried on it.
        reparam: the training branches.
        kwargs: passed to the model's constructor.

    Raises:
        UnknownModel: neither library has the name.
        ModelError: the constructor refuses `kwargs`, the model does not run on `image_size`, its
            output is not [B, num_classes], or `reparam` does not fit it.
    """
    example = torch.zeros(1, 3, image_size, image_size)
    if name.startswith("ghostnetv3_"):
        model, reparam, folded = _ghostnetv3(
            name, num_classes, reparam, {"drop_rate": 0.0, **kwargs}
        )
    else:
        kwargs = {**_size_argument(name, image_size), **kwargs}
        model, folded = _construct(name, num_classes, kwargs), Folded.CONV_BN
    _try(model, example, name=name, num_classes=num_classes)
    model, expansion = expand(model, reparam, example, folded=folded)
    if reparam.branches is not None:
        logger.info(
            "%s: %d convolutions expanded, %d left alone",
            name,
            len(expansion.expanded),
            len(expansion.left_alone),
        )
    return model


def plain_source(
    name: str, *, num_classes: int, image_size: int, kwargs: Mapping[str, Any]
) -> tuple[str, str]:
    """Python that builds the folded network without this project: an import, and a call.

    Args:
        name: as given to `build_student`, like the others.
        num_classes: the data's class count.
        image_size: the side of the square inputs in pixels.
        kwargs: passed to the model's constructor.
    """
    plain = {key: value for key, value in kwargs.items() if key != "pretrained"}
    plain = {**_size_argument(name, image_size), **plain}
    arguments = {"num_classes": num_classes, **plain}
    library, make, architecture = "timm", "timm.create_model", name
    if name.startswith(TORCHVISION):
        library, make = "torchvision", "torchvision.models.get_model"
        architecture = name.removeprefix(TORCHVISION)
    spelled = "".join(f", {key}={value!r}" for key, value in arguments.items())
    call = f"{make}({architecture!r}{spelled})"
    if library == "timm" and is_reparameterized_by_timm(_construct(name, num_classes, plain)):
        call = f"timm.utils.reparameterize_model({call})"
    return f"import {library}", call


def _ghostnetv3(
    name: str, num_classes: int, reparam: ReparamSpec, kwargs: Mapping[str, Any]
) -> tuple[nn.Module, ReparamSpec, Folded]:
    if reparam.branches is None or reparam == ReparamSpec(branches=3):
        return _construct(name, num_classes, kwargs), ReparamSpec(), Folded.CONV_BIAS
    if kwargs.get("pretrained"):
        raise ModelError(
            f"{name} is pretrained with three branches, 1x1 and identity, got another [reparam]: "
            "set reparam.branches = 3 and nothing else there, or student.kwargs.pretrained = false"
        )
    if not timm.is_model(name):
        raise UnknownModel(_unknown(name, timm.list_models()))
    width = name.partition(".")[0].removeprefix("ghostnetv3_")
    if width == "050":  # timm names no GhostNetV2 of this width
        base, kwargs = "ghostnet_050", {**kwargs, "version": "v2"}
    else:
        base = f"ghostnetv2_{width}"
    if not reparam.select:
        reparam = reparam.model_copy(update={"select": GHOSTNETV3_SELECT})
    return _construct(base, num_classes, kwargs), reparam, Folded.CONV_BIAS


def _size_argument(name: str, image_size: int) -> dict[str, int]:
    """What a timm model must be told of its input: nothing, unless its weights depend on it."""
    if name.startswith(TORCHVISION) or not timm.is_model(name):
        return {}
    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UnknownModel(
            f"no model is called {name!r}, expected a tag that timm has, or none: {error}"
        ) from error
    return {"img_size": image_size} if config is not None and config.fixed_input_size else {}


def _construct(name: str, num_classes: int, kwargs: Mapping[str, Any]) -> nn.Module:
    if "num_classes" in kwargs:
        raise ModelError(
            f"student.kwargs has num_classes = {kwargs['num_classes']}, expected it to come from "
            f"the data ({num_classes} classes): remove it"
        )
    make: Callable[..., nn.Module]
    if name.startswith(TORCHVISION):
        make, architecture = torchvision.models.get_model, name.removeprefix(TORCHVISION)
        known = torchvision.models.list_models(module=torchvision.models)
        known_names = [TORCHVISION + model for model in known]
        is_known = architecture in known
    else:
        make, architecture = timm.create_model, name
        known_names = timm.list_models()
        is_known = timm.is_model(name)
    if not is_known:
        raise UnknownModel(_unknown(name, known_names))
    try:
        return make(architecture, num_classes=num_classes, **kwargs)
    except (TypeError, ValueError, AssertionError, KeyError, RuntimeError) as error:
        given = ", ".join(f"{key} = {value!r}" for key, value in kwargs.items()) or "none"
        raise ModelError(
            f"{name} cannot be built with student.kwargs ({given}), expected arguments of its "
            f"constructor: {error}"
        ) from error


def _unknown(name: str, known_names: list[str]) -> str:
    near = difflib.get_close_matches(name, known_names, n=3, cutoff=0.5)
    return (
        f"no model is called {name!r}, expected a timm name or 'torchvision/' and a torchvision "
        f"classifier's: did you mean {' or '.join(near) or known_names[0]}?"
    )


def _try(model: nn.Module, example: Tensor, *, name: str, num_classes: int) -> None:
    """One pass in eval mode, so that a size that cannot work fails now and not in training."""
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
