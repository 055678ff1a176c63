"""Which parts of making pixels the compiled code does; Pillow does the others, to the same pixels.

`teacher_cache.pixels._native` (csrc/, C) is optional and computes what Pillow computes, bit for
bit, several times as fast. It is never trusted: `teacher_cache.pixels.selftest` compares each part
with the installed Pillow before the first picture, and what differs is left to Pillow.
"""

from dataclasses import dataclass

try:
    from teacher_cache.pixels import _native as native
except ImportError:  # no compiler when the package was installed
    native = None  # type: ignore[assignment]

__all__ = ["COMPILED", "PILLOW", "Engine", "native"]


@dataclass(frozen=True, slots=True)
class Engine:
    """The parts that the compiled code does."""

    jpeg: bool
    """Whether it decodes plain baseline JPEGs."""
    filters: frozenset[str]
    """The filters it resizes with."""
    steps: frozenset[str]
    """The steps of RandAugment's operations (`teacher_cache.pixels.ops.Step`) that it takes."""

    def __str__(self) -> str:
        """Short, for logs: `compiled`, `pillow`, or what is left to Pillow."""
        if self == PILLOW:
            return "pillow"
        left = [*sorted((COMPILED.filters - self.filters) | (COMPILED.steps - self.steps))]
        left += [] if self.jpeg else ["jpeg"]
        return f"compiled, but {', '.join(left)} by pillow" if left else "compiled"


PILLOW = Engine(jpeg=False, filters=frozenset(), steps=frozenset())
"""Everything by Pillow."""

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
"""All that the compiled code can do."""
