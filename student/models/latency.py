"""How long one image takes on one CPU thread."""

import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

PASSES_A_TURN = 10
"""So that a network runs with warm caches, as it does alone, and yet meets every busy moment."""


def latencies_ms(networks: Sequence[nn.Module], *, size: int, runs: int = 100) -> list[float]:
    """Median wall time of a forward pass on one image of `size` px, in milliseconds.

    The networks take turns of ten passes, after one that is not timed, so that whatever else the
    machine does meets all of them alike; one thread, contiguous float32. Their modes and the
    number of threads are restored.

    Args:
        networks: on the CPU.
        size: pixels a side.
        runs: timed passes of each network.
    """
    modes, threads = [network.training for network in networks], torch.get_num_threads()
    image = torch.randn((1, 3, size, size), generator=torch.Generator().manual_seed(0))
    seconds: list[list[float]] = [[] for _ in networks]
    torch.set_num_threads(1)
    for network in networks:
        network.eval()
    try:
        with torch.inference_mode():
            for begin in range(0, runs, PASSES_A_TURN):
                for network, timed in zip(networks, seconds, strict=True):
                    network(image)
                    for _ in range(min(PASSES_A_TURN, runs - begin)):
                        started = time.perf_counter()
                        network(image)
                        timed.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)
    return [1000 * statistics.median(timed) for timed in seconds]
