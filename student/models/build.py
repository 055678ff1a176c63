"""Build a student by name: any timm classifier, any torchvision one, the paper's GhostNetV3.

Names: timm's (`mobilenetv2_100`, `deit_tiny_patch16_224`), or torchvision's after a prefix
(`torchvision/shufflenet_v2_x1_0`).
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from student.models.trial import ModelError, require_classifier
from teacher_cache.networks.branches import Folded
from teacher_cache.networks.checkpoints import read_checkpoint
from teacher_cache.networks.libraries import (
    GHOSTNETV3,
    TORCHVISION,
    construct,
    default_arguments,
    ghostnetv2_of,
    is_known,
    similar_names,
)
from teacher_cache.networks.reparam import ReparamSpec, expand, is_reparameterized_by_timm
from teacher_cache.networks.weights import class_count_of, fitted

logger = logging.getLogger(__name__)

# GhostNetV3 is GhostNetV2 with training branches on these three of its convolutions (GhostNetV3,
# arXiv 2404.11202, sec. 4.1; the official code leaves the same others alone).
GHOSTNETV3_SELECT = ("primary_conv", "cheap_operation", "conv_dw")

TIMMS_GHOSTNETV3 = ReparamSpec(branches=3)
"""What timm's `ghostnetv3_*` are in training: three branches, 1x1, identity."""


class UnknownModel(ModelError):
    """No model has this name; the message suggests the nearest ones."""


def build_student(
    name: str,
    *,
    num_classes: int,
    image_size: int,
    reparam: ReparamSpec,
    kwargs: Mapping[str, Any],
    checkpoint: Path | None = None,
    use_ema: bool = True,
) -> nn.Module:
    """Build a student in train mode on the CPU, expanded as `reparam` asks.

    Weights are drawn from torch's global generator: seed it before. A timm `ghostnetv3_*` comes in
    timm's own training form where `reparam` leaves it alone or asks for what it is (three
    branches, 1x1, identity); any other `reparam` makes the same network by surgery on GhostNetV2.
    Either way `teacher_cache.networks.reparam.fold` gives timm's deployed form, and dropout is 0
    unless `kwargs` says otherwise (timm's default is 0.2, the paper's code has none). Of the other
    GhostNets the same three convolutions are expanded, unless `reparam.select` names others.

    Args:
        name: a timm name, or `torchvision/` and a torchvision classifier's.
        num_classes: the data's class count, 2 or more.
        image_size: the side of the square inputs in pixels; the model is tried on it.
        reparam: the training branches.
        kwargs: passed to the model's constructor; `pretrained = true` starts from timm's weights.
        checkpoint: weights to start from; a classifier of another class count is left out.
        use_ema: of a checkpoint that holds both, take the moving average.

    Raises:
        UnknownModel: neither library has the name.
        ModelError: the constructor refuses `kwargs`, the model does not run on `image_size`, its
            output is not [B, num_classes], or `reparam` does not fit it or the weights.
        WeightsError: a checkpoint that cannot be read, or is another network's.
    """
    example = torch.zeros(1, 3, image_size, image_size)
    folded = Folded.CONV_BN
    if name.startswith(GHOSTNETV3):
        name, kwargs, reparam = _ghostnetv3(name, {"drop_rate": 0.0, **kwargs}, reparam)
        folded = Folded.CONV_BIAS
    elif name.startswith(("ghostnet_", "ghostnetv2_")):
        reparam = _at_three_places(reparam)
    _require_that_branches_keep(reparam, kwargs, checkpoint)
    kwargs = {**_size_argument(name, image_size), **kwargs}
    model = _construct(name, num_classes, kwargs)
    require_classifier(model, example, name=name, num_classes=num_classes)
    if checkpoint is not None:
        state = read_checkpoint(checkpoint, use_ema=use_ema)
        _start_from(model, name, kwargs, state, source=f"student.checkpoint {checkpoint}")
    model, expansion = expand(model, reparam, example, folded=folded)
    if reparam.branches is not None:
        logger.info(
            "%s: %d convolutions expanded, %d left alone",
            name,
            len(expansion.expanded),
            len(expansion.left_alone),
        )
    return model


def without_start(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor arguments for a network that is given its weights, and fetches none."""
    return {key: value for key, value in kwargs.items() if key != "pretrained"}


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
    plain = {
        **default_arguments(name),
        **_size_argument(name, image_size),
        **without_start(kwargs),
    }
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


def _require_that_branches_keep(
    reparam: ReparamSpec, kwargs: Mapping[str, Any], checkpoint: Path | None
) -> None:
    """Branches that are drawn anew would end what pretrained weights compute."""
    if checkpoint is None and not kwargs.get("pretrained"):
        return
    if reparam.branches is not None and reparam.init == "independent":
        start = "student.kwargs.pretrained" if checkpoint is None else "student.checkpoint"
        raise ModelError(
            f"got reparam.init = 'independent' with {start}, expected 'warm_start': branches that "
            "are drawn anew end what the weights compute; set reparam.init = 'warm_start', which "
            "keeps it, or leave reparam.branches out"
        )


def _ghostnetv3(
    name: str, kwargs: Mapping[str, Any], reparam: ReparamSpec
) -> tuple[str, Mapping[str, Any], ReparamSpec]:
    """Of what it is built: timm's own modules, or GhostNetV2 and its branches."""
    if reparam.branches is None or reparam == TIMMS_GHOSTNETV3:
        return name, kwargs, ReparamSpec()
    if kwargs.get("pretrained"):
        raise ModelError(
            f"{name} is pretrained with three branches, 1x1 and identity, got another [reparam]: "
            "set reparam.branches = 3 and nothing else there, or student.kwargs.pretrained = false"
        )
    if not is_known(name):
        raise UnknownModel(_unknown(name))
    base, arguments = ghostnetv2_of(name)
    return base, {**kwargs, **arguments}, _at_three_places(reparam)


def _at_three_places(reparam: ReparamSpec) -> ReparamSpec:
    if reparam.select:
        return reparam
    return reparam.model_copy(update={"select": GHOSTNETV3_SELECT})


def _start_from(
    model: nn.Module,
    name: str,
    kwargs: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    source: str,
) -> None:
    """Load weights of the model, but for a classifier of other classes."""
    own = model.state_dict()
    size = kwargs.get("img_size", 224)
    with torch.random.fork_rng(devices=[]):
        like = _construct(name, class_count_of(name, state) or 1000, kwargs)
    found = fitted(like, name, state, source=source, example=torch.zeros(1, 3, size, size))
    weights = found.state_dict()
    if weights.keys() != own.keys():
        raise ModelError(
            f"{source} holds the deployed form of {name}, expected the form that is trained: "
            "folding cannot be undone; name the file that was saved in training"
        )
    left = [key for key, value in weights.items() if value.shape != own[key].shape]
    if left:
        logger.warning("%s: %s are of other classes and begin anew", source, ", ".join(left))
    model.load_state_dict(own | {k: v for k, v in weights.items() if k not in left})


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
    if not is_known(name):
        raise UnknownModel(_unknown(name))
    pretrained = bool(kwargs.get("pretrained"))
    if pretrained and name.startswith(TORCHVISION):
        raise ModelError(
            f"got student.kwargs.pretrained for {name}, expected it for timm's networks alone: "
            "save torchvision's weights with torch.save(network.state_dict(), FILE) and name them "
            "as student.checkpoint"
        )
    arguments = {"num_classes": num_classes, **without_start(kwargs)}
    try:
        return construct(name, arguments, pretrained=pretrained)
    except (TypeError, ValueError, AssertionError, KeyError, RuntimeError) as error:
        given = ", ".join(f"{key} = {value!r}" for key, value in kwargs.items()) or "none"
        raise ModelError(
            f"{name} cannot be built with student.kwargs ({given}), expected arguments of its "
            f"constructor: {error}"
        ) from error
    except Exception as error:  # hubs and networks have no common type of error
        if not pretrained:
            raise
        reason = str(error).splitlines()[0] if str(error) else "no reason given"
        raise ModelError(
            f"student.kwargs.pretrained = true, and the weights of {name} could not be fetched "
            f"({type(error).__name__}: {reason}): check the network or the hub's cache, or name a "
            "local student.checkpoint"
        ) from error


def _unknown(name: str) -> str:
    return (
        f"no model is called {name!r}, expected a timm name or 'torchvision/' and a torchvision "
        f"classifier's: did you mean {' or '.join(similar_names(name)[:3])}?"
    )
