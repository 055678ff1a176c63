"""timm's own RandAugment functions, with the sign that an operation asks for."""

import random

from PIL import Image
from timm.data import auto_augment

from teacher_cache.pixels.ops import FILL


def timm_op(image, op):
    """The same operation by timm's own functions, its sign fixed."""
    level = op.level / 65536
    # timm negates when random() > 0.5.
    original, random.random = random.random, lambda: 1.0 if op.negate else 0.0
    try:
        level_to_arg = auto_augment.LEVEL_TO_ARG[op.name]
        arguments = level_to_arg(level, {}) if level_to_arg else ()
    finally:
        random.random = original
    if op.name.startswith("Posterize"):
        arguments = (max(1, arguments[0]),)
    return auto_augment.NAME_TO_OP[op.name](
        image, *arguments, fillcolor=FILL, resample=Image.Resampling.BILINEAR
    )
