"""Parallel conv-BN branches in training, and the one convolution they equal afterwards.

    sum_i BN_i(W_i * x)  =  (sum_i s_i W_i) * x + sum_i (beta_i - s_i mean_i),
    s_i = gamma_i / sqrt(var_i + eps)

with running statistics, since a convolution and an evaluating BatchNorm are both linear
(RepVGG, arXiv 2101.03697; GhostNetV3, arXiv 2404.11202, re-parameterization).

Shapes: B rows, I input channels, O output channels, H and W pixels.
"""

import copy
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import cast

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn


class Folded(StrEnum):
    """What a convolution's branches and its BatchNorm become again."""

    CONV_BN = "conv_bn"
    """A convolution and a calibrated BatchNorm: the model's own state-dict keys."""
    CONV_BIAS = "conv_bias"
    """A convolution with a bias and no BatchNorm: the form of timm's deployed GhostNetV3."""


class ConvNorm(nn.Module):
    """One branch: a convolution without bias, then its BatchNorm."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """[B, I, H, W] -> [B, O, H', W']."""
        return cast("Tensor", self.norm(self.conv(x)))


class Branches(nn.Module):
    """Stands where a convolution stood; its output is the sum of its branches."""

    def __init__(
        self,
        convs: Sequence[ConvNorm],
        scale: ConvNorm | None,
        identity: nn.BatchNorm2d | None,
        folded: Folded,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.scale = scale
        self.identity = identity
        self.folded = folded

    def forward(self, x: Tensor) -> Tensor:
        """[B, I, H, W] -> [B, O, H', W']."""
        parts = self._parts()
        total = cast("Tensor", next(parts)(x))
        for part in parts:
            # In place: the backward pass of a BatchNorm needs its input, not its output.
            total += part(x)
        return total

    def kernel_and_bias(self) -> tuple[Tensor, Tensor]:
        """The one convolution that the branches equal in eval mode.

        Returns:
            float64 kernel [O, I / groups, kh, kw] and bias [O].
        """
        first = cast("ConvNorm", self.convs[0]).conv
        kernel = torch.zeros_like(first.weight, dtype=torch.float64)
        bias = kernel.new_zeros(first.out_channels)
        for part in self._parts():
            if isinstance(part, ConvNorm):
                weight, norm = _centred(part.conv.weight.detach().double(), kernel), part.norm
            else:
                weight = nn.init.dirac_(torch.zeros_like(kernel), groups=first.groups)
                norm = cast("nn.BatchNorm2d", part)
            scale, shift = _scale_and_shift(norm)
            kernel += weight * scale[:, None, None, None]
            bias += shift
        return kernel, bias

    def fold(self) -> nn.Conv2d:
        """The convolution that takes this module's place."""
        first = cast("ConvNorm", self.convs[0]).conv
        kernel, bias = self.kernel_and_bias()
        conv = copy.deepcopy(first)
        with torch.no_grad():
            conv.weight.copy_(kernel)
        if self.folded is Folded.CONV_BIAS:
            conv.bias = nn.Parameter(bias.to(first.weight))
        return conv

    def _parts(self) -> Iterator[nn.Module]:
        yield from self.convs
        if self.scale is not None:
            yield self.scale
        if self.identity is not None:
            yield self.identity


class SumNorm(nn.Module):
    """Stands where the convolution's BatchNorm stood: watches the sum, keeps the activation.

    The branches are normalised already; what is left is the activation that timm's BatchNormAct2d
    carries. In training it also keeps running statistics of the sum, for a folded BatchNorm that
    normalises as training would, so that the folded network can be trained on.
    """

    def __init__(
        self, branches: Branches, statistics: nn.BatchNorm2d, norm: nn.BatchNorm2d
    ) -> None:
        super().__init__()
        # A tuple hides the branches from torch: they are registered where the convolution was.
        self.source = (branches,)
        # A module of its own, so that resetting, momentum and SyncBatchNorm reach it; not needed
        # where the folded form has no BatchNorm.
        self.statistics = statistics if branches.folded is Folded.CONV_BN else None
        self.drop = norm.drop if isinstance(norm, BatchNormAct2d) else None
        self.act = norm.act if isinstance(norm, BatchNormAct2d) else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, O, H, W] -> the same shape."""
        if self.training and self.statistics is not None:
            with torch.no_grad():
                self.statistics(x)
        if self.drop is not None and self.act is not None:
            x = self.act(self.drop(x))
        return x

    def fold(self) -> nn.Module:
        """What takes this module's place: a BatchNorm that adds the branches' bias, or nothing.

        With m and v the watched mean and variance of y = W * x + b, the BatchNorm has weight
        sqrt(v + eps), bias m, mean m - b and variance v. In eval mode that is + b exactly,
        whatever m and v are; in train mode it is near it, since they are the statistics of y.
        """
        if self.statistics is None:
            if self.drop is None or self.act is None:
                return nn.Identity()
            return nn.Sequential(self.drop, self.act)
        norm = _affine(self.statistics, activated=self.act is not None)
        if self.drop is not None and self.act is not None:
            norm.drop, norm.act = self.drop, self.act
        state = {k: v.double() for k, v in self.statistics.named_buffers()}
        mean, var = state["running_mean"], state["running_var"]
        _, bias = self.source[0].kernel_and_bias()
        norm.load_state_dict(
            {
                "weight": (var + norm.eps).sqrt(),
                "bias": mean,
                "running_mean": mean - bias,
                "running_var": var,
                "num_batches_tracked": state["num_batches_tracked"],
            },
            strict=False,  # an activation's own parameters are in place already
        )
        return norm.train(self.training)


def _affine(statistics: nn.BatchNorm2d, *, activated: bool) -> nn.BatchNorm2d:
    kind = BatchNormAct2d if activated else nn.BatchNorm2d
    norm: nn.BatchNorm2d = kind(statistics.num_features, eps=statistics.eps)
    norm.momentum = statistics.momentum
    return norm.to(statistics.running_mean)


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """An evaluating BatchNorm as x -> scale x + shift, in float64."""
    state = {k: v.detach().double() for k, v in norm.state_dict().items()}
    scale = state["weight"] / (state["running_var"] + norm.eps).sqrt()
    return scale, state["bias"] - state["running_mean"] * scale


def _centred(weight: Tensor, kernel: Tensor) -> Tensor:
    """Zero-pad a smaller odd kernel to the size of an odd one, in the middle."""
    rows = (kernel.shape[2] - weight.shape[2]) // 2
    columns = (kernel.shape[3] - weight.shape[3]) // 2
    return nn.functional.pad(weight, (columns, columns, rows, rows))
