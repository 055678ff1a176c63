"""Re-parameterization: expand a model's convolutions into branches, fold them back.

The paper's networks are untouched at inference: training gives a k x k convolution and its
BatchNorm N parallel copies of the pair, a 1x1 one where it is depth-wise, and a BatchNorm of the
input where the shapes permit; folding adds them up into one convolution (GhostNetV3,
arXiv 2404.11202, re-parameterization and Tables 1 and 2).

One surgery for every model: `expand` finds the pairs by tracing a forward pass, and
`fold(expand(model))` has the state-dict keys of `model`, so plain timm or torchvision opens it.
"""

import copy
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, cast

import torch
from pydantic import BaseModel, field_validator, model_validator
from timm.models.ghostnet import GhostModuleV3
from timm.utils import reparameterize_model
from torch import Tensor, nn

from teacher_cache.errors import UserError
from teacher_cache.networks import branch_init
from teacher_cache.networks.branches import Branches, Folded, SumNorm
from teacher_cache.networks.conv_norm_pairs import find_pairs


class ReparamError(UserError):
    """A model that cannot be expanded as asked."""


class ReparamSpec(BaseModel, frozen=True, extra="forbid"):
    """Which branches a convolution gets in training: the recipe's `[reparam]`."""

    branches: int | None = None
    """N, the number of parallel k x k conv-BN branches; None leaves the model as it is."""
    scale_1x1: bool = True
    """A further 1x1 depth-wise conv-BN branch for k x k depth-wise convolutions."""
    identity: bool = True
    """A further BatchNorm-only branch where input and output have the same shape."""
    init: Literal["independent", "warm_start"] = "independent"
    """`independent`: the first branch keeps the model's weights, the others are drawn anew.
    `warm_start`: every branch starts as W / N + noise, their sum is the model's own function."""
    gamma: Literal["one", "inverse_sqrt"] = "one"
    """The branches' first BatchNorm weights, relative to the model's: 1 or 1 / sqrt(branches)."""
    select: tuple[str, ...] = ()
    """Shell patterns, each of a whole dotted name or of one part of it; none selects all."""

    @field_validator("branches")
    @classmethod
    def _at_least_one(cls, branches: int | None) -> int | None:
        if branches is not None and branches < 1:
            raise ValueError(
                f"branches is {branches}, expected 1 or more: leave reparam.branches out to train "
                "the plain model"
            )
        return branches

    @model_validator(mode="after")
    def _one_source_of_scale(self) -> "ReparamSpec":
        if self.init == "warm_start" and self.gamma != "one":
            raise ValueError(
                f"gamma is {self.gamma!r} with init = 'warm_start', expected 'one': a warm start "
                "takes its scales from the model"
            )
        return self


@dataclass(frozen=True, slots=True)
class Expanded:
    """A convolution that got branches."""

    conv: str
    norm: str
    branches: int
    """The k x k branches."""
    scale_1x1: bool
    identity: bool


@dataclass(frozen=True, slots=True)
class Expansion:
    """What `expand` did: every Conv2d of the model is in one of the two."""

    expanded: tuple[Expanded, ...]
    left_alone: Mapping[str, str]
    """The reason by name."""


def expand(
    model: nn.Module, spec: ReparamSpec, example: Tensor, *, folded: Folded = Folded.CONV_BN
) -> tuple[nn.Module, Expansion]:
    """Give the model's convolutions their training branches.

    New weights are drawn from torch's global generator: seed it before.

    Args:
        model: any model; it is not changed.
        spec: which branches; `spec.branches = None` returns the model itself.
        example: an input [B, 3, H, W] on the model's device and of its dtype, for the trace.
        folded: what `fold` will make of it.

    Returns:
        The expanded copy, and what was expanded and what was left alone, with each reason.

    Raises:
        ReparamError: the model is expanded already, a pattern of `spec.select` matches no
            convolution, or nothing can be expanded.
    """
    if spec.branches is None:
        return model, Expansion(expanded=(), left_alone={})
    if is_expanded(model):
        raise ReparamError(
            f"{type(model).__name__} has training branches already, expected a plain model: fold "
            "it first, or leave reparam.branches out"
        )
    model = copy.deepcopy(model)
    pairs, left_alone = find_pairs(model, example)
    selected = _selected([pair.conv for pair in pairs] + list(left_alone), spec.select)
    expanded = []
    for pair in pairs:
        conv = cast("nn.Conv2d", model.get_submodule(pair.conv))
        norm = cast("nn.BatchNorm2d", model.get_submodule(pair.norm))
        branches = _branches(conv, norm, spec, folded) if pair.conv in selected else None
        if branches is None:
            left_alone[pair.conv] = (
                "one branch is the convolution itself"
                if pair.conv in selected
                else "no pattern of reparam.select matches it"
            )
            continue
        model.set_submodule(pair.conv, branches)
        watching = branch_init.watching_norm(norm)
        model.set_submodule(pair.norm, SumNorm(branches, watching, norm).train(norm.training))
        expanded.append(
            Expanded(
                conv=pair.conv,
                norm=pair.norm,
                branches=spec.branches,
                scale_1x1=branches.scale is not None,
                identity=branches.identity is not None,
            )
        )
    if not expanded:
        raise ReparamError(_nothing_to_expand(model, left_alone))
    return model, Expansion(expanded=tuple(expanded), left_alone=left_alone)


def fold(model: nn.Module) -> nn.Module:
    """A copy in eval mode with every convolution's branches folded into one convolution.

    The copy computes what the model computes in eval mode, and its parameters can be trained on.
    What `expand` made gets the keys of the model before. timm's own re-parameterizable networks
    (GhostNetV3, MobileOne, RepVGG, RepViT, FastViT and all others that
    `timm.utils.reparameterize_model` folds) get its deployed form, which plain timm opens after
    `timm.utils.reparameterize_model(timm.create_model(NAME))`. All sums are float64.

    Args:
        model: any model; it is not changed. One with nothing to fold is copied as it is.
    """
    model = copy.deepcopy(model).eval()
    for name, module in list(model.named_modules()):
        if isinstance(module, (SumNorm, Branches)):
            model.set_submodule(name, module.fold())
    return _deploy(model)


def is_expanded(model: nn.Module) -> bool:
    """Whether a model has branches that `expand` adds none to: ours, or timm's GhostNetV3's."""
    return any(
        isinstance(module, Branches)
        or (isinstance(module, GhostModuleV3) and not module.infer_mode)
        for module in model.modules()
    )


def is_reparameterized_by_timm(model: nn.Module) -> bool:
    """Whether `timm.utils.reparameterize_model` knows what to do with a part of a network.

    A network that it has folded keeps some of the parts, on which it does nothing any more.
    """
    parts = (module for module in model.modules() if module is not model)
    return any(hasattr(module, name) for module in parts for name in _TIMM_FOLDS)


_TIMM_FOLDS = ("fuse", "reparameterize", "switch_to_deploy")
"""The methods that `timm.utils.reparameterize_model` (1.0.26 to 1.0.31) looks for."""


def _branches(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, spec: ReparamSpec, folded: Folded
) -> Branches | None:
    assert spec.branches is not None
    has_scale = spec.scale_1x1 and branch_init.takes_scale_1x1(conv)
    has_identity = spec.identity and branch_init.takes_identity(conv)
    count = spec.branches + has_scale + has_identity
    # One branch is the pair itself, unless it must lose its BatchNorm when folded.
    if count == 1 and folded is Folded.CONV_BN:
        return None
    if spec.init == "warm_start":
        convs = branch_init.warm(conv, norm, count=spec.branches)
        gamma = beta = 0.0  # the further branches begin silent: the sum is the model's function
    else:
        gamma = 1.0 if spec.gamma == "one" else 1.0 / math.sqrt(count)
        beta = 1.0 / count
        convs = branch_init.independent(conv, norm, count=spec.branches, gamma=gamma, beta=beta)
    branches = Branches(
        convs=convs,
        scale=branch_init.scale_1x1(conv, norm, gamma=gamma, beta=beta) if has_scale else None,
        identity=branch_init.fresh_norm(norm, gamma=gamma, beta=beta) if has_identity else None,
        folded=folded,
    )
    return branches.train(conv.training)


def _selected(names: Iterable[str], patterns: tuple[str, ...]) -> set[str]:
    names = list(names)
    if not patterns:
        return set(names)
    chosen = set()
    for pattern in patterns:
        matched = {
            name
            for name in names
            if any(fnmatchcase(part, pattern) for part in [name, *name.split(".")])
        }
        if not matched:
            some = ", ".join([*names[:3], "..."] if len(names) > 3 else names) or "none"
            raise ReparamError(
                f"reparam.select has {pattern!r}, which matches no convolution of the model, "
                f"expected a pattern of a name or of one part of it: the convolutions are {some}"
            )
        chosen |= matched
    return chosen


def _nothing_to_expand(model: nn.Module, left_alone: Mapping[str, str]) -> str:
    reasons = Counter(left_alone.values()).most_common(4)
    why = "; ".join(f"{reason} ({count})" for reason, count in reasons)
    return (
        f"{type(model).__name__} has nothing to expand ({why or 'it has no Conv2d'}), expected "
        "plain convolutions each followed by a BatchNorm2d: leave reparam.branches out, or change "
        "reparam.select, branches, scale_1x1 or identity"
    )


def _deploy(model: nn.Module) -> nn.Module:
    """Fold in place as timm does, but in float64, and without freezing what it touches."""
    if not is_reparameterized_by_timm(model):
        return model
    dtype = next(model.parameters()).dtype
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # in which timm makes the layers that it puts in
    try:
        model = reparameterize_model(model.double(), inplace=True).to(dtype)
    finally:
        torch.set_default_dtype(default)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name not in frozen)
    for module in model.modules():
        # a buffer that timm keeps as a plain attribute: of no use any more
        if hasattr(module, "id_tensor"):
            del module.id_tensor
    return model
