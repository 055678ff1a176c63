"""Bytes + View -> uint8 pixels [size, size, 3]; no randomness of its own.

The order is timm's: crop, resize, flip, RandAugment, erase. Geometry is exact integer arithmetic.
The pixels are those of `PIXEL_ENGINE` and of the pixel libraries, whose versions a cache's manifest
names. Nothing is normalised here: whoever feeds a model does that.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np
import PIL
from PIL import Image, features

from teacher_cache.pixels.decode import PIXEL_LIMIT, Picture, UnreadableImage, decode_with
from teacher_cache.pixels.engine import Engine
from teacher_cache.pixels.ops import apply_op
from teacher_cache.pixels.resize import INTERPOLATIONS, Pixels, resize_crop
from teacher_cache.pixels.selftest import proved_engine
from teacher_cache.views.geometry import crop_box, erase_box
from teacher_cache.views.noise import noise_pixels
from teacher_cache.views.view import View

__all__ = [
    "PIXEL_ENGINE",
    "PIXEL_LIMIT",
    "Picture",
    "UnreadableImage",
    "crop_box",
    "decode_image",
    "erase_box",
    "pixel_crc",
    "pixel_libraries",
    "render",
    "render_center",
]

PIXEL_ENGINE = "pillow-1"
"""The name and version of these pixels: another name means other pixels.

They are Pillow's pixels, and the compiled engine is used only where it gives the same.
"""


def pixel_libraries() -> dict[str, str]:
    """Name -> version of each library that computes pixels; 'absent' if Pillow lacks it."""
    bundled = ("libjpeg_turbo", "jpg", "zlib", "zlib_ng", "webp", "libtiff")
    return {
        "pillow": PIL.__version__,
        "numpy": np.__version__,
        **{name: features.version(name) or "absent" for name in bundled},
    }


def decode_image(
    data: bytes, *, views: Sequence[View] | None = None, engine: Engine | None = None
) -> Picture:
    """Decode an image to RGB.

    The formats are JPEG, PNG, WebP, TIFF, GIF (its first frame), BMP and PPM. Pixels may be 1-bit,
    gray, palette, RGB or CMYK; alpha is dropped, and of 12 or 16 bits a channel the upper 8 are
    kept.

    Args:
        data: the encoded file.
        views: the only views that will be rendered; what they do not look at is not decoded where
            the file is a baseline JPEG.
        engine: by default the compiled engine, as far as it gives the pixels of this Pillow.

    Raises:
        UnreadableImage: the data are empty, of another format, truncated or damaged, or the image
            has more than `PIXEL_LIMIT` pixels, or pixels without a fixed range (32-bit integers and
            floats).
    """
    return decode_with(engine or proved_engine(), data, views)


def render(
    picture: Picture,
    view: View,
    *,
    size: int,
    interpolation: str = "bicubic",
    out: Pixels | None = None,
    engine: Engine | None = None,
) -> Pixels:
    """Apply a view to a decoded image.

    Args:
        picture: as `decode_image` gives it.
        view: what to do with it.
        size: side of the result in pixels.
        interpolation: Pillow's filter for the resize: nearest, box, bilinear, hamming, bicubic
            or lanczos.
        out: uint8 [size, size, 3], C-contiguous, to write into: a slot of a batch.
        engine: as in `decode_image`.

    Returns:
        `out`, or new uint8 [size, size, 3], C-contiguous and writable.

    Raises:
        ValueError: the size is below 1, the filter unknown, `out` of another shape, or the picture
            was decoded for other views.
    """
    pixels = _checked_out(out, size, interpolation)
    engine = engine or proved_engine()
    resize_crop(
        picture.pixels,
        picture.box_of(view),
        pixels,
        interpolation=interpolation,
        flip=view.flip,
        engine=engine,
    )
    for op in view.ops:
        apply_op(pixels, op, engine=engine)
    if view.erase is not None:
        left, top, right, bottom = erase_box(view.erase, size)
        pixels[top:bottom, left:right] = noise_pixels(view.noise_key, bottom - top, right - left)
    return pixels


def render_center(
    picture: Picture,
    *,
    size: int,
    crop_ratio: float,
    interpolation: str = "bicubic",
    out: Pixels | None = None,
) -> Pixels:
    """Resize the shorter side to floor(size / crop_ratio), then cut out the centre square.

    These are the pixels of timm's `transforms_imagenet_eval` (torchvision's Resize and CenterCrop),
    made by Pillow. Of an image whose long side is more than 8 times the short one only the square
    is computed, and its pixels are the same within rounding: to resize all of an image of 20,000 x
    1 pixels would take gigabytes.

    Args:
        picture: as `decode_image` gives it without `views`.
        size: side of the result in pixels.
        crop_ratio: share of the resized shorter side that the square keeps, in (0, 1].
        interpolation: as in `render`.
        out: as in `render`.

    Returns:
        `out`, or new uint8 [size, size, 3], C-contiguous and writable.

    Raises:
        ValueError: as in `render`, or the ratio is outside (0, 1].
    """
    pixels = _checked_out(out, size, interpolation)
    if not 0 < crop_ratio <= 1:
        raise ValueError(f"crop_ratio is {crop_ratio}: expected more than 0 and at most 1")
    if picture.pixels.shape[:2] != (picture.height, picture.width):
        raise ValueError("the picture was decoded for views: decode without them to see all of it")
    image, resample = Image.fromarray(picture.pixels), INTERPOLATIONS[interpolation]
    shorter, least = math.floor(size / crop_ratio), min(image.size)
    width, height = (shorter * side // least for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)  # half to even, as timm's
    corners = (left, top, left + size, top + size)
    if max(image.size) <= 8 * least:
        square = image.resize((width, height), resample).crop(corners)
    else:
        x, y = image.width / width, image.height / height
        box = (left * x, top * y, corners[2] * x, corners[3] * y)
        square = image.resize((size, size), resample, box=box)
    pixels[...] = np.asarray(square)
    return pixels


def pixel_crc(pixels: Pixels) -> int:
    """CRC-32, as zlib computes it, of rendered pixels: an entry of the cache's `check` array."""
    return zlib.crc32(np.ascontiguousarray(pixels).data)


def _checked_out(out: Pixels | None, size: int, interpolation: str) -> Pixels:
    """Check the arguments that `render` and `render_center` share; return the array to fill."""
    if size < 1:
        raise ValueError(f"size is {size}: expected at least 1 pixel")
    if interpolation not in INTERPOLATIONS:
        known = ", ".join(INTERPOLATIONS)
        raise ValueError(f"interpolation is {interpolation!r}: expected one of {known}")
    if out is None:
        return np.empty((size, size, 3), np.uint8)
    if out.shape != (size, size, 3) or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(
            f"out is {out.dtype} {out.shape}: expected C-contiguous uint8 ({size}, {size}, 3)"
        )
    return out
