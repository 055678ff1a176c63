"""How large a network is."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def parameter_count(network: nn.Module) -> int:
    """How many trained numbers a network has; buffers such as running means are left out."""
    return sum(parameter.numel() for parameter in network.parameters())


def multiply_adds(network: nn.Module, *, size: int) -> int:
    """Multiply-adds of one image of `size` px: convolutions, matrix products, attention.

    torch counts each as two operations, papers as one 'FLOP'. Normalisation, activations and
    pooling are left out, as papers do. The network must be on the CPU.
    """
    was_training = network.training
    image = torch.zeros(1, 3, size, size)
    # attention as matrix products: torch 2.11 does not count its fused form on the CPU
    plain = sdpa_kernel(SDPBackend.MATH)
    # with gradients, since torch's counter fails without them where a parameter is a module's input
    with FlopCounterMode(display=False) as counter, torch.enable_grad(), plain:
        network.eval()(image)
    network.train(was_training)
    return int(counter.get_total_flops()) // 2
