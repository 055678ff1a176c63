"""Bytes + View -> uint8 pixels [size, size, 3]; no randomness of its own.

The order is timm's: crop, resize, flip, RandAugment, erase. Geometry is exact integer arithmetic;
the pixels themselves are those of `PIXEL_ENGINE`, the pixel libraries whose versions a cache's
manifest names. Normalisation is left to whoever feeds a model.
"""

import math
import zlib
from functools import cache
from hashlib import shake_128

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, features

from teacher_cache.decode import PIXEL_LIMIT, UnreadableImage, decode_image
from teacher_cache.ops import apply_op
from teacher_cache.quantiles import quantiles
from teacher_cache.views import Box, Crop, View

__all__ = [
    "PIXEL_ENGINE",
    "PIXEL_LIMIT",
    "UnreadableImage",
    "crop_box",
    "decode_image",
    "erase_box",
    "pixel_crc",
    "pixel_libraries",
    "render",
    "render_center",
]

Pixels = npt.NDArray[np.uint8]

PIXEL_ENGINE = "pillow-1"
"""Name and version of this way of making pixels; another name means other pixels."""

_INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# ImageNet's mean and standard deviation of red, green, blue, in thousandths of full scale.
_MEAN_MILLI = (485, 456, 406)
_STD_MILLI = (229, 224, 225)


def pixel_libraries() -> dict[str, str]:
    """Version of every library that touches a pixel; 'absent' where Pillow was built without it."""
    bundled = ("libjpeg_turbo", "jpg", "zlib", "zlib_ng", "webp", "libtiff")
    return {
        "pillow": PIL.__version__,
        "numpy": np.__version__,
        **{name: features.version(name) or "absent" for name in bundled},
    }


def render(image: Image.Image, view: View, *, size: int, interpolation: str = "bicubic") -> Pixels:
    """Apply a view to a decoded image.

    Args:
        image: RGB, as `decode_image` gives it.
        view: what to do with it.
        size: side of the result in pixels.
        interpolation: Pillow's filter for the resize: nearest, box, bilinear, hamming, bicubic
            or lanczos.

    Returns:
        uint8 [size, size, 3], C-contiguous and writable.

    Raises:
        ValueError: the image is not RGB, the size below 1, or the filter unknown.
    """
    resample = _checked_filter(image, size, interpolation)
    # Crop first: `resize(box=)` would let its filter look at pixels outside the crop.
    square = image.crop(crop_box(view.crops, *image.size)).resize((size, size), resample)
    if view.flip:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for op in view.ops:
        square = apply_op(square, op)
    pixels = np.array(square)
    if view.erase is not None:
        left, top, right, bottom = erase_box(view.erase, size)
        pixels[top:bottom, left:right] = _noise(view.noise_key, bottom - top, right - left)
    return pixels


def render_center(
    image: Image.Image, *, size: int, crop_ratio: float, interpolation: str = "bicubic"
) -> Pixels:
    """Evaluate's pixels: shorter side to floor(size / crop_ratio), then the centre square.

    The pixels of timm's `transforms_imagenet_eval` (torchvision's Resize and CenterCrop). Of an
    image more than 8 times as long as wide only the square is computed, to the same within
    rounding: resizing all of 20,000 x 1 pixels would need gigabytes.

    Args:
        image: RGB, as `decode_image` gives it.
        size: side of the result in pixels.
        crop_ratio: share of the resized shorter side that the square keeps, in (0, 1].
        interpolation: as in `render`.

    Returns:
        uint8 [size, size, 3], C-contiguous and writable.

    Raises:
        ValueError: as in `render`, or the ratio is outside (0, 1].
    """
    resample = _checked_filter(image, size, interpolation)
    if not 0 < crop_ratio <= 1:
        raise ValueError(f"crop_ratio is {crop_ratio}: expected more than 0 and at most 1")
    shorter, least = math.floor(size / crop_ratio), min(image.size)
    width, height = (shorter * side // least for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)  # half to even, as timm's
    corners = (left, top, left + size, top + size)
    if max(image.size) <= 8 * least:
        return np.array(image.resize((width, height), resample).crop(corners))
    x, y = image.width / width, image.height / height
    box = (left * x, top * y, corners[2] * x, corners[3] * y)
    return np.array(image.resize((size, size), resample, box=box))


def pixel_crc(pixels: Pixels) -> int:
    """CRC-32 (zlib's) of rendered pixels: what the cache's `check` array holds."""
    return zlib.crc32(np.ascontiguousarray(pixels).data)


def crop_box(crops: tuple[Crop, ...], width: int, height: int) -> tuple[int, int, int, int]:
    """Pixels (left, top, right, bottom) of the first candidate that fits, else of the centre.

    torchvision's RandomResizedCrop.get_params in integers: w = round(sqrt(area * ratio)) and
    h = round(sqrt(area / ratio)), halves up. With x2 = 4 * w^2, round(w) = (isqrt(x2) + 1) // 2.
    """
    for area, ratio, x, y in crops:
        area_q32 = width * height * area
        w = (math.isqrt(area_q32 * ratio >> 46) + 1) >> 1
        h = (math.isqrt((area_q32 << 2) // (ratio << 16)) + 1) >> 1
        if 0 < w <= width and 0 < h <= height:
            left, top = x * (width - w + 1) >> 32, y * (height - h + 1) >> 32
            return left, top, left + w, top + h
    # The largest centred box whose ratio lies in 3/4..4/3.
    w = min(width, (8 * height + 3) // 6)
    h = min(height, (8 * width + 3) // 6)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def erase_box(box: Box, size: int) -> tuple[int, int, int, int]:
    """Pixels (left, top, right, bottom) of an erased box at this size, sides rounded half up."""
    h = (box.height * size + (1 << 31)) >> 32
    w = (box.width * size + (1 << 31)) >> 32
    left, top = box.left * (size - w + 1) >> 32, box.top * (size - h + 1) >> 32
    return left, top, left + w, top + h


def _noise(key: bytes, height: int, width: int) -> Pixels:
    """Gaussian noise [height, width, 3] with ImageNet's mean and std, one digest byte a value."""
    stream = shake_128(b"14:retort/noise/1,%d:%b," % (len(key), key)).digest(height * width * 3)
    levels = np.frombuffer(stream, np.uint8).reshape(height, width, 3)
    return np.stack([table[levels[..., c]] for c, table in enumerate(_noise_tables())], axis=-1)


@cache
def _noise_tables() -> tuple[Pixels, ...]:
    """For each channel the uint8 value of each byte: 256 equally likely parts of the Gaussian.

    Byte b stands for the mean of entries 16 b to 16 b + 15 of the committed normal table, z; its
    value is round(255 * (mean + std * z)), halves up, clipped: what timm's RandomErasing in mode
    'pixel' draws after normalisation, brought back to uint8.
    """
    normal = quantiles().standard_normal
    sums_q20 = [sum(normal[16 * byte : 16 * byte + 16]) for byte in range(256)]
    channels = []
    for mean, std in zip(_MEAN_MILLI, _STD_MILLI, strict=True):
        # value = 255 * (mean + std * sum / 2^20) / 1000; twice it plus one, halved, rounds.
        values = [
            (255 * 2 * ((mean << 20) + std * z) + (1000 << 20)) // (2000 << 20) for z in sums_q20
        ]
        channels.append(np.clip(values, 0, 255).astype(np.uint8))
    return tuple(channels)


def _checked_filter(image: Image.Image, size: int, interpolation: str) -> Image.Resampling:
    """Check what `render` and `render_center` share, and return Pillow's filter."""
    if image.mode != "RGB":
        raise ValueError(f"image has mode {image.mode}: expected RGB, as decode_image gives it")
    if size < 1:
        raise ValueError(f"size is {size}: expected at least 1 pixel")
    if interpolation not in _INTERPOLATIONS:
        known = ", ".join(_INTERPOLATIONS)
        raise ValueError(f"interpolation is {interpolation!r}: expected one of {known}")
    return _INTERPOLATIONS[interpolation]
