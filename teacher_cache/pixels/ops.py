"""RandAugment's pixel operations, as timm.data.auto_augment defines them.

Each operation gives the very pixels that timm computes with Pillow, `img_mean` = ImageNet's mean
and bilinear resampling. Where no interpolation is set, timm chooses bilinear or bicubic at random.
Here affine operations are always bilinear: a view has one decision less, bilinear costs half of
bicubic and never overshoots, and every engine means the same by it.

An operation of a view becomes one step with a numeric argument; the compiled engine and Pillow
both know every step. Levels are in Q16 on timm's scale of 0 to 10. Arguments are the same products
in double precision as timm's, so that truncation to whole numbers gives the same results.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance, ImageOps

from teacher_cache.pixels.engine import Engine, native
from teacher_cache.views.view import Op

FILL = (124, 116, 104)
"""Colour of what an affine operation uncovers: round(255 * ImageNet's mean), timm's `img_mean`."""

Pixels = npt.NDArray[np.uint8]


class Step(NamedTuple):
    """One operation on an image of a certain size, as both engines take it."""

    name: str
    argument: Any
    """For `affine`, the map (a, b, c, d, e, f) from output to input coordinates, in pixels; for
    `posterize`, how many bits stay; for `solarize`, the threshold; for `solarize_add`, the levels
    to add; for the enhancements, Pillow's factor; None for the others."""


def apply_op(pixels: Pixels, op: Op, *, engine: Engine) -> None:
    """Change uint8 pixels [H, W, 3] in place by one operation.

    Raises:
        ValueError: no operation has that name.
    """
    height, width = pixels.shape[:2]
    apply_step(pixels, step_of(op, width, height), engine=engine)


def step_of(op: Op, width: int, height: int) -> Step:
    """Turn an operation into the step that applies it to an image of this size.

    Raises:
        ValueError: no operation has that name.
    """
    step = _STEPS.get(op.name)
    if step is None:
        known = ", ".join(sorted(_STEPS))
        raise ValueError(f"no RandAugment operation is named {op.name!r}: expected one of {known}")
    fraction = op.level / 65536 / 10.0  # timm's level / _LEVEL_DENOM
    return step(fraction, -1.0 if op.negate else 1.0, width, height)


def apply_step(pixels: Pixels, step: Step, *, engine: Engine) -> None:
    """Change uint8 pixels [H, W, 3] in place by one step."""
    if native is None or step.name not in engine.steps:
        pixels[...] = np.asarray(_pillow_step(Image.fromarray(pixels), step))
    elif step.name == "affine":
        native.affine(pixels, step.argument, FILL)
    elif step.argument is None:
        getattr(native, step.name)(pixels)
    else:
        getattr(native, step.name)(pixels, step.argument)


def _pillow_step(image: Image.Image, step: Step) -> Image.Image:
    if step.name == "affine":
        matrix, bilinear = step.argument, Image.Resampling.BILINEAR
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix, resample=bilinear, fillcolor=FILL
        )
    return _PILLOW_STEPS[step.name](image, step.argument)


def _rotation(fraction: float, sign: float, width: int, height: int) -> Step:
    """Pillow's Image.rotate, counter-clockwise about the centre, by up to 30 degrees."""
    # The roundings to 15 digits, and even the added zeros, are Pillow's.
    angle = -math.radians(sign * (fraction * 30.0) % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    minus_sin = round(-math.sin(angle), 15)
    x, y = width / 2, height / 2
    right = cos * -x + sin * -y + 0.0 + x
    down = minus_sin * -x + cos * -y + 0.0 + y
    return Step("affine", (cos, sin, right, minus_sin, cos, down))


def _solarize_threshold(fraction: float) -> int:
    return min(256, int(fraction * 256))


def _enhance(name: str) -> Callable[[float, float, int, int], Step]:
    """Blend with Pillow's degenerate image by a factor of 0.1 to 1.9, where 1 changes nothing."""
    return lambda fraction, _, __, ___: Step(name, fraction * 1.8 + 0.1)


def _enhance_increasing(name: str) -> Callable[[float, float, int, int], Step]:
    """Blend by a factor that is the further from 1, which changes nothing, the higher the level."""
    return lambda fraction, sign, _, __: Step(name, max(0.1, 1.0 + sign * (fraction * 0.9)))


# name -> (level / 10, sign, width, height) -> step
_STEPS: dict[str, Callable[[float, float, int, int], Step]] = {
    "AutoContrast": lambda *_: Step("autocontrast", None),
    "Equalize": lambda *_: Step("equalize", None),
    "Invert": lambda *_: Step("invert", None),
    "Rotate": _rotation,
    # timm sometimes asks for 0 bits, which older Pillow turns into a black image; 13 raises an
    # error.
    "Posterize": lambda f, *_: Step("posterize", max(1, int(f * 4))),
    "PosterizeIncreasing": lambda f, *_: Step("posterize", max(1, 4 - int(f * 4))),
    "Solarize": lambda f, *_: Step("solarize", _solarize_threshold(f)),
    "SolarizeIncreasing": lambda f, *_: Step("solarize", 256 - _solarize_threshold(f)),
    "SolarizeAdd": lambda f, *_: Step("solarize_add", min(128, int(f * 110))),
    "Color": _enhance("color"),
    "ColorIncreasing": _enhance_increasing("color"),
    "Contrast": _enhance("contrast"),
    "ContrastIncreasing": _enhance_increasing("contrast"),
    "Brightness": _enhance("brightness"),
    "BrightnessIncreasing": _enhance_increasing("brightness"),
    "Sharpness": _enhance("sharpness"),
    "SharpnessIncreasing": _enhance_increasing("sharpness"),
    "ShearX": lambda f, s, *_: Step("affine", (1, s * (f * 0.3), 0, 0, 1, 0)),
    "ShearY": lambda f, s, *_: Step("affine", (1, 0, 0, s * (f * 0.3), 1, 0)),
    "TranslateXRel": lambda f, s, w, _: Step("affine", (1, 0, s * (f * 0.45) * w, 0, 1, 0)),
    "TranslateYRel": lambda f, s, _, h: Step("affine", (1, 0, 0, 0, 1, s * (f * 0.45) * h)),
}


def _solarize_add(image: Image.Image, added: int) -> Image.Image:
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


# step -> (image, argument) -> image
_PILLOW_STEPS: dict[str, Callable[..., Image.Image]] = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "posterize": ImageOps.posterize,
    "solarize": ImageOps.solarize,
    "solarize_add": _solarize_add,
    "color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
}
