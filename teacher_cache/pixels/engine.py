"""Which steps the compiled code does; Pillow does the others and gives the same pixels.

`teacher_cache.pixels._native` (C, in csrc/) is optional. It computes what Pillow computes, bit for
bit, several times as fast. It is never trusted: before the first image,
`teacher_cache.pixels.selftest` compares each step with the installed Pillow, which then does every
step that differs.
"""

from dataclasses import dataclass

try:
    from teacher_cache.pixels import _native as native
except ImportError:  # there was no compiler when the package was installed
    native = None  # type: ignore[assignment]

__all__ = ["COMPILED", "PILLOW", "Engine", "native"]


@dataclass(frozen=True, slots=True)
class Engine:
    """The steps that the compiled code does."""

    jpeg: bool
    """Whether it decodes baseline JPEGs."""
    filters: frozenset[str]
    """The filters that it resizes with."""
    steps: frozenset[str]
    """The names of the steps (`teacher_cache.pixels.ops.Step`) that it applies."""

    def __str__(self) -> str:
        """A short name for logs: `compiled`, `pillow`, or `compiled` with what Pillow does."""
        if self == PILLOW:
            return "pillow"
        others = [*sorted((COMPILED.filters - self.filters) | (COMPILED.steps - self.steps))]
        others += [] if self.jpeg else ["jpeg"]
        return f"compiled, but {', '.join(others)} by pillow" if others else "compiled"


PILLOW = Engine(jpeg=False, filters=frozenset(), steps=frozenset())
"""Pillow does everything."""

COMPILED = Engine(
    jpeg=True,
    filters=frozenset({"box", "bilinear", "bicubic"}),
    steps=frozenset(
        (
            *("affine", "autocontrast", "equalize", "invert", "posterize", "solarize"),
            *("solarize_add", "brightness", "contrast", "color", "sharpness"),
        )
    ),
)
"""The compiled code does all that it can."""
