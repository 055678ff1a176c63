"""Which machine and which versions a figure belongs to."""

import os
import platform
from importlib.metadata import version
from pathlib import Path


def describe() -> str:
    """One line: processor, cores, Python and the libraries that count."""
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    processor = names[0].partition(":")[2].strip() if names else platform.machine()
    libraries = ", ".join(
        f"{n} {version(n)}" for n in ("torch", "torchvision", "timm", "zarr", "pillow")
    )
    return f"{processor}, {os.cpu_count()} cores; Python {platform.python_version()}, {libraries}"
