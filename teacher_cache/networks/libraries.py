"""Networks by name, from timm (`resnet50`) or torchvision (`torchvision/resnet50`)."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import timm
import torchvision.models
from torch import nn

TORCHVISION = "torchvision/"
GHOSTNETV3 = "ghostnetv3_"

_WITH_AUXILIARY_OUTPUTS = ("googlenet", "inception_v3")
"""torchvision's networks that answer with more than logits in training, unless told not to."""


def is_known(name: str) -> bool:
    """Whether a library has a classifier of this name; a tag of timm's is not looked at."""
    if name.startswith(TORCHVISION):
        return name.removeprefix(TORCHVISION) in _torchvisions()
    return bool(timm.is_model(name))


def similar_names(name: str) -> list[str]:
    """Names of the same library that are much like this one, the nearest first."""
    if name.startswith(TORCHVISION):
        known = [TORCHVISION + each for each in _torchvisions()]
    else:
        known = timm.list_models()
    return get_close_matches(name, known, n=5, cutoff=0.4) or known[:1]


def construct(name: str, kwargs: Mapping[str, Any], *, pretrained: bool = False) -> nn.Module:
    """Build a known network; weights are drawn from torch's global generator, or the library's own.

    Args:
        name: for which `is_known` holds.
        kwargs: passed to its constructor.
        pretrained: fetch the library's weights, or take them from its cache.

    Raises:
        Exception: of any type, what the library raises.
    """
    network: nn.Module
    if not name.startswith(TORCHVISION):
        network = timm.create_model(name, pretrained=pretrained, **kwargs)
        return network
    architecture = name.removeprefix(TORCHVISION)
    if pretrained:
        network = torchvision.models.get_model(architecture, weights="DEFAULT", **kwargs)
        return network
    network = torchvision.models.get_model(architecture, **{**default_arguments(name), **kwargs})
    return network


def default_arguments(name: str) -> dict[str, Any]:
    """What a network without pretrained weights is told besides what the user says."""
    if name.removeprefix(TORCHVISION) in _WITH_AUXILIARY_OUTPUTS and name.startswith(TORCHVISION):
        return {"aux_logits": False, "init_weights": True}
    return {}


def ghostnetv2_of(name: str) -> tuple[str, dict[str, Any]]:
    """The GhostNetV2, by name and arguments, of which a `ghostnetv3_*` is the training form."""
    width = name.partition(".")[0].removeprefix(GHOSTNETV3)
    if width == "050":  # timm names no GhostNetV2 of this width
        return "ghostnet_050", {"version": "v2"}
    return f"ghostnetv2_{width}", {}


def _torchvisions() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names
