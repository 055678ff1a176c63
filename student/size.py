"""How large a network is."""

from torch import nn


def parameter_count(network: nn.Module) -> int:
    """How many trained numbers a network has; buffers such as running means are left out."""
    return sum(parameter.numel() for parameter in network.parameters())
