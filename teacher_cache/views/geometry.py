"""The pixels that a view's crop and its erased box cover, in exact integer arithmetic."""

import math

from teacher_cache.views.view import Box, Crop

PixelBox = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels; right and bottom are not part of the box."""


def crop_box(crops: tuple[Crop, ...], width: int, height: int) -> PixelBox:
    """The first candidate that fits into the image, or else the centre crop.

    This is torchvision's RandomResizedCrop.get_params in integers: w = round(sqrt(area * ratio))
    and h = round(sqrt(area / ratio)), with halves rounded up. A rounded square root needs no
    floating point: round(w) = (isqrt(4 * w^2) + 1) // 2.
    """
    for area, ratio, x, y in crops:
        area_q32 = width * height * area
        # area_q32 * ratio is in Q48; a shift by 46 leaves 4 * w^2 in whole pixels
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
    """The erased box in an image of `size` x `size` pixels; its sides are rounded half up."""
    h = (box.height * size + (1 << 31)) >> 32
    w = (box.width * size + (1 << 31)) >> 32
    left, top = box.left * (size - w + 1) >> 32, box.top * (size - h + 1) >> 32
    return left, top, left + w, top + h
