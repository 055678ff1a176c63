"""Which machine and which versions a figure belongs to, and how ratios are measured."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version

from teacher_cache.machine import processor

LIBRARIES = ("torch", "torchvision", "timm", "zarr", "pillow")


def describe() -> str:
    """One line: processor, cores, Python and the libraries that count."""
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {libraries}"


def versions_of(*names: str) -> str:
    """Versions of further libraries, some of which may be absent."""
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def interleaved(
    contestants: Mapping[str, Callable[[], object]], *, repeats: int
) -> dict[str, float]:
    """Median seconds of each, taking turns, so that a busy moment hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()  # warm-up
    for _ in range(repeats):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def print_ratios(seconds: Mapping[str, float], *, to: str) -> None:
    """A line a contestant: milliseconds, and how many times as long as `to` it takes."""
    width = max(map(len, seconds))
    for name, value in seconds.items():
        print(f"  {name.ljust(width)}  {1000 * value:9.2f} ms  {value / seconds[to]:6.2f}")
