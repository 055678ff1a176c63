"""How a convolution's branches begin.

Copies of one kernel would get the same gradients and stay copies for ever: under LAMB their
difference remains exactly 0. So every branch is drawn anew, or parted from the others by noise.

All draws come from torch's global generator, as those of model constructors: seed it before.
"""

import torch
from torch import Tensor, nn

from teacher_cache.networks.branches import ConvNorm

NOISE = 0.1
"""Of a warm start, relative to the root mean square of the branches' common kernel."""


def independent(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, *, count: int, gamma: float, beta: float
) -> list[ConvNorm]:
    """`count` branches, the first with the model's own weights, the others drawn anew.

    The draws are torch's default for the shape at the model's own root mean square, since LAMB's
    steps are in proportion to a kernel's size.

    Args:
        conv: the convolution.
        norm: the BatchNorm after it.
        count: number of branches, 1 or more.
        gamma: their BatchNorm weights relative to `norm`'s.
        beta: their BatchNorm biases relative to `norm`'s.
    """
    weights = [conv.weight.detach().clone()]
    size = _root_mean_square(weights[0])
    for _ in range(count - 1):
        drawn = _like(conv).weight.detach()
        weights.append(drawn * (size / _root_mean_square(drawn)) if size > 0 else drawn)
    return [
        ConvNorm(_like(conv, weight), fresh_norm(norm, gamma=gamma, beta=beta))
        for weight in weights
    ]


def warm(conv: nn.Conv2d, norm: nn.BatchNorm2d, *, count: int) -> list[ConvNorm]:
    """`count` branches W / count + noise that together are the model's own conv-BN in eval mode.

    The noises of a convolution sum to 0, the BatchNorms share mean / count and
    var / count^2, and their weights make up for eps, so the equality is exact.
    """
    weight = conv.weight.detach()
    noises = [torch.randn_like(weight) for _ in range(count)]
    middle = torch.stack(noises).mean(dim=0)
    size = NOISE * _root_mean_square(weight) / count
    state = {name: value.detach() for name, value in norm.state_dict().items()}
    var = state["running_var"] / count**2
    gamma = state["weight"] * ((var + norm.eps) / (state["running_var"] + norm.eps)).sqrt()
    branches = []
    for noise in noises:
        part = fresh_norm(norm, gamma=1.0, beta=1.0 / count)
        part.load_state_dict(
            {
                "weight": gamma,
                "bias": state["bias"] / count,
                "running_mean": state["running_mean"] / count,
                "running_var": var,
                "num_batches_tracked": state["num_batches_tracked"],
            }
        )
        branches.append(ConvNorm(_like(conv, weight / count + (noise - middle) * size), part))
    return branches


def scale_1x1(conv: nn.Conv2d, norm: nn.BatchNorm2d, *, gamma: float, beta: float) -> ConvNorm:
    """The 1x1 branch of a k x k convolution: same channels, groups and stride."""
    small = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        kernel_size=1,
        stride=conv.stride,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=False,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    return ConvNorm(small, fresh_norm(norm, gamma=gamma, beta=beta))


def takes_scale_1x1(conv: nn.Conv2d) -> bool:
    """Whether a 1x1 branch can join: depth-wise, larger than 1x1, and centred on a pixel."""
    return conv.groups == conv.in_channels and max(conv.kernel_size) > 1 and _is_centred(conv)


def takes_identity(conv: nn.Conv2d) -> bool:
    """Whether the input itself can join: same shape out as in, and centred on a pixel."""
    return conv.in_channels == conv.out_channels and set(conv.stride) == {1} and _is_centred(conv)


def fresh_norm(norm: nn.BatchNorm2d, *, gamma: float, beta: float) -> nn.BatchNorm2d:
    """An untrained BatchNorm with `norm`'s settings, and its affine parameters in proportion."""
    fresh = nn.BatchNorm2d(norm.num_features, eps=norm.eps, momentum=norm.momentum).to(norm.weight)
    with torch.no_grad():
        fresh.weight.copy_(norm.weight * gamma)
        fresh.bias.copy_(norm.bias * beta)
    return fresh


def watching_norm(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Statistics for the sum of `norm`'s branches: those of `norm`'s output, to begin with."""
    watching = nn.BatchNorm2d(
        norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=False
    ).to(norm.weight)
    assert watching.running_mean is not None
    assert watching.running_var is not None
    watching.running_mean.copy_(norm.bias.detach())
    watching.running_var.copy_(norm.weight.detach() ** 2)
    return watching


def _is_centred(conv: nn.Conv2d) -> bool:
    """Whether output pixel (i, j) lies under the kernel's middle at input (stride i, stride j)."""
    sides = zip(conv.kernel_size, conv.dilation, conv.padding, strict=True)
    return all(k % 2 == 1 and p == d * (k // 2) for k, d, p in sides)


def _like(conv: nn.Conv2d, weight: Tensor | None = None) -> nn.Conv2d:
    made = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        kernel_size=conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=False,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    if weight is not None:
        made.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    return made


def _root_mean_square(weight: Tensor) -> float:
    return float(weight.double().square().mean().sqrt())
