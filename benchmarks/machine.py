"""Which machine and which versions a figure belongs to."""

import platform
from importlib.metadata import version

from student.machine import processor


def describe() -> str:
    """One line: processor, cores, Python and the libraries that count."""
    libraries = ", ".join(
        f"{n} {version(n)}" for n in ("torch", "torchvision", "timm", "zarr", "pillow")
    )
    return f"{processor()}; Python {platform.python_version()}, {libraries}"
