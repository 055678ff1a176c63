"""A crop is resized to a square with an antialiasing filter, and may be mirrored, as by Pillow."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from teacher_cache.pixels.engine import Engine, native
from teacher_cache.views.geometry import PixelBox

Pixels = npt.NDArray[np.uint8]

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Pillow's filters by the names that recipes use."""

_COMPILED_FILTERS = {"box": 0, "bilinear": 1, "bicubic": 2}


def resize_crop(
    pixels: Pixels, box: PixelBox, out: Pixels, *, interpolation: str, flip: bool, engine: Engine
) -> None:
    """Fill `out` [size, size, 3] from the box of `pixels` [H, W, 3] alone."""
    if native is not None and interpolation in engine.filters:
        native.resize_crop(pixels, out, box, _COMPILED_FILTERS[interpolation], flip)
        return
    left, top, right, bottom = box
    # Crop first: `resize(box=)` would let its filter look at pixels outside the crop.
    crop = Image.fromarray(np.ascontiguousarray(pixels[top:bottom, left:right]))
    square = crop.resize(out.shape[:2], INTERPOLATIONS[interpolation])
    if flip:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    out[...] = np.asarray(square)
