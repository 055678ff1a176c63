"""Where a view's crop and its erased box lie in pixels: exact integer arithmetic."""

import math

from teacher_cache.views.view import Box, Crop

PixelBox = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels; right and bottom are one past."""


def crop_box(crops: tuple[Crop, ...], width: int, height: int) -> PixelBox:
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


def erase_box(box: Box, size: int) -> PixelBox:
    """Pixels (left, top, right, bottom) of an erased box at this size, sides rounded half up."""
    h = (box.height * size + (1 << 31)) >> 32
    w = (box.width * size + (1 << 31)) >> 32
    left, top = box.left * (size - w + 1) >> 32, box.top * (size - h + 1) >> 32
    return left, top, left + w, top + h
