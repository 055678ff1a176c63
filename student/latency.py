"""How long one image takes on one CPU thread."""

import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

WARM_UP_RUNS = 5


def latencies_ms(networks: Sequence[nn.Module], *, size: int, runs: int = 100) -> list[float]:
    """Median wall time of a forward pass on one image of `size` px, in milliseconds.

    The networks take turns, so that whatever else the machine does meets all of them alike; one
    thread, contiguous float32. Their modes and the number of threads are restored.

    Args:
        networks: on the CPU.
        size: pixels a side.
        runs: timed passes of each network, after five that are not.
    """
    modes, threads = [network.training for network in networks], torch.get_num_threads()
    image = torch.randn((1, 3, size, size), generator=torch.Generator().manual_seed(0))
    seconds: list[list[float]] = [[] for _ in networks]
    torch.set_num_threads(1)
    for network in networks:
        network.eval()
    try:
        with torch.inference_mode():
            for run in range(-WARM_UP_RUNS, runs):
                for network, timed in zip(networks, seconds, strict=True):
                    started = time.perf_counter()
                    network(image)
                    if run >= 0:
                        timed.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)
    return [1000 * statistics.median(timed) for timed in seconds]
