"""RandAugment's pixel operations, as timm.data.auto_augment defines them, on Pillow images.

Every one is pixel for pixel what timm computes with `img_mean` = ImageNet's mean and bilinear
resampling. timm draws bilinear or bicubic at random where no interpolation is set; here affine
operations are always bilinear: one filter is one decision less in a view, it costs half of bicubic,
it never overshoots, and every engine has it with the same meaning.

Levels come in Q16 on timm's scale of 0 to 10. Arguments are computed with the same double-precision
products as timm's, so that truncation to whole numbers falls alike.
"""

from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

from teacher_cache.views import Op

FILL = (124, 116, 104)
"""Colour of what an affine operation uncovers: round(255 * ImageNet's mean), timm's `img_mean`."""

_BILINEAR = Image.Resampling.BILINEAR
_AFFINE = Image.Transform.AFFINE


def apply_op(image: Image.Image, op: Op) -> Image.Image:
    """Return the RGB image after one operation; its size stays.

    Raises:
        ValueError: no operation has that name.
    """
    operation = _OPERATIONS.get(op.name)
    if operation is None:
        known = ", ".join(sorted(_OPERATIONS))
        raise ValueError(f"no RandAugment operation is named {op.name!r}: expected one of {known}")
    fraction = op.level / 65536 / 10.0  # timm's level / _LEVEL_DENOM
    return operation(image, fraction, -1.0 if op.negate else 1.0)


def _rotate(image: Image.Image, fraction: float, sign: float) -> Image.Image:
    return image.rotate(sign * (fraction * 30.0), resample=_BILINEAR, fillcolor=FILL)


def _transform(image: Image.Image, *matrix: float) -> Image.Image:
    """Affine map from output to input coordinates (a, b, c, d, e, f), in pixels."""
    return image.transform(image.size, _AFFINE, matrix, resample=_BILINEAR, fillcolor=FILL)


def _shear_x(image: Image.Image, fraction: float, sign: float) -> Image.Image:
    return _transform(image, 1, sign * (fraction * 0.3), 0, 0, 1, 0)


def _shear_y(image: Image.Image, fraction: float, sign: float) -> Image.Image:
    return _transform(image, 1, 0, 0, sign * (fraction * 0.3), 1, 0)


def _translate_x(image: Image.Image, fraction: float, sign: float) -> Image.Image:
    return _transform(image, 1, 0, sign * (fraction * 0.45) * image.width, 0, 1, 0)


def _translate_y(image: Image.Image, fraction: float, sign: float) -> Image.Image:
    return _transform(image, 1, 0, 0, 0, 1, sign * (fraction * 0.45) * image.height)


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    # timm asks for 0 bits at times: a black image in older Pillow, an error since 13.
    return ImageOps.posterize(image, max(1, bits))


def _solarize_add(image: Image.Image, fraction: float) -> Image.Image:
    added = min(128, int(fraction * 110))
    table = [min(255, value + added) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


def _solarize_threshold(fraction: float) -> int:
    return min(256, int(fraction * 256))


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Callable[..., Image.Image]:
    """Blend with the degenerate image by 0.1..1.9: 1 is no change."""
    return lambda image, fraction, _: kind(image).enhance(fraction * 1.8 + 0.1)


def _enhance_increasing(
    kind: Callable[[Image.Image], ImageEnhance._Enhance],
) -> Callable[..., Image.Image]:
    """Blend by 1 -+ up to 0.9: away from no change as the level grows."""
    return lambda image, fraction, sign: kind(image).enhance(
        max(0.1, 1.0 + sign * (fraction * 0.9))
    )


# name -> (image, level / 10, sign) -> image
_OPERATIONS: dict[str, Callable[[Image.Image, float, float], Image.Image]] = {
    "AutoContrast": lambda image, _, __: ImageOps.autocontrast(image),
    "Equalize": lambda image, _, __: ImageOps.equalize(image),
    "Invert": lambda image, _, __: ImageOps.invert(image),
    "Rotate": _rotate,
    "Posterize": lambda image, fraction, _: _posterize(image, int(fraction * 4)),
    "PosterizeIncreasing": lambda image, fraction, _: _posterize(image, 4 - int(fraction * 4)),
    "Solarize": lambda image, fraction, _: ImageOps.solarize(image, _solarize_threshold(fraction)),
    "SolarizeIncreasing": lambda image, fraction, _: ImageOps.solarize(
        image, 256 - _solarize_threshold(fraction)
    ),
    "SolarizeAdd": lambda image, fraction, _: _solarize_add(image, fraction),
    "Color": _enhance(ImageEnhance.Color),
    "ColorIncreasing": _enhance_increasing(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "ContrastIncreasing": _enhance_increasing(ImageEnhance.Contrast),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "BrightnessIncreasing": _enhance_increasing(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "SharpnessIncreasing": _enhance_increasing(ImageEnhance.Sharpness),
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateXRel": _translate_x,
    "TranslateYRel": _translate_y,
}
