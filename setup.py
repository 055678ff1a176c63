"""The compiled pixel engine; all else is in pyproject.toml.

Optional: without a C compiler (gcc or clang) the package installs without it, and Pillow makes the
same pixels.
"""

from pathlib import Path

from setuptools import Extension, setup

SOURCES = sorted(str(path) for path in Path("teacher_cache/pixels/csrc").glob("*.c"))

setup(
    ext_modules=[
        Extension(
            "teacher_cache.pixels._native",
            SOURCES,
            depends=sorted(str(path) for path in Path("teacher_cache/pixels/csrc").glob("*.h")),
            # no fused multiply-add: where Pillow rounds twice, so do we
            extra_compile_args=["-std=c11", "-O3", "-ffp-contract=off", "-Wno-psabi"],
            py_limited_api=True,
            optional=True,
        )
    ]
)
