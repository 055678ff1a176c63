"""Before the first image, each step of the compiled engine is compared with the installed Pillow.

Another Pillow may round differently (13 changed the order of a resize's passes), and another
compiler may fuse multiplications. Pillow then does that step, so the pixels stay what they were.
The comparison takes some milliseconds a process.
"""

import logging
import os
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image

from teacher_cache.pixels.decode import decode_with
from teacher_cache.pixels.engine import COMPILED, PILLOW, Engine, native
from teacher_cache.pixels.ops import Step, apply_step
from teacher_cache.pixels.resize import Pixels, resize_crop

_log = logging.getLogger(__name__)

_SIDE = 48
_SLANT = 0.2588190451025208
_STEPS = (
    Step("affine", (0.9659258262890683, _SLANT, -5.4, -_SLANT, 0.9659258262890683, 7.1)),
    Step("affine", (1, 0.27, 0, 0, 1, 0)),
    Step("affine", (1, 0, 0, 0, 1, -0.4049 * _SIDE)),
    *(Step(name, None) for name in ("autocontrast", "equalize", "invert")),
    *(Step("posterize", bits) for bits in (1, 3)),
    *(Step("solarize", threshold) for threshold in (26, 256)),
    Step("solarize_add", 99),
    *(
        Step(name, factor)
        for name in ("brightness", "contrast", "color", "sharpness")
        for factor in (0.1, 0.4567, 1.7199999)
    ),
)
# (box, size): a box that is wider than high, a higher one (of which Pillow 13 resizes the columns
# first), one that is enlarged, and one that has the right width already
_RESIZES = (
    ((3, 1, 93, 41), 32),
    ((10, 2, 31, 64), 16),
    ((5, 5, 17, 16), _SIDE),
    ((0, 3, 24, 60), 24),
)


@cache
def proved_engine() -> Engine:
    """The compiled engine without the steps that differ from this Pillow.

    Where it is not installed, or the environment says RETORT_PIXELS=pillow, Pillow does everything.
    """
    if native is None or os.environ.get("RETORT_PIXELS") == "pillow":
        return PILLOW
    picture = _picture()
    engine = Engine(
        jpeg=_same_jpeg(picture),
        filters=frozenset(name for name in COMPILED.filters if _same_resize(picture, name)),
        steps=COMPILED.steps
        - {step.name for step in _STEPS if not _same_step(picture[:_SIDE, :_SIDE], step)},
    )
    if engine != COMPILED:
        _log.warning("pixels: %s: this Pillow's differ from the compiled ones", engine)
    return engine


def _picture() -> Pixels:
    """An image [64, 96, 3] of gradients, edges and noise, computed from whole numbers alone."""
    y, x, c = np.mgrid[0:64, 0:96, 0:3].astype(np.uint32)
    noise = ((x * 2654435761 + y * 40503 + c * 69069) >> 7) % 61
    levels: Pixels = np.clip(2 * x + y + 40 * c + noise * (x > 50), 0, 255).astype(np.uint8)
    return levels


def _same_jpeg(picture: Pixels) -> bool:
    sources = [(Image.fromarray(picture), sampling) for sampling in ("4:4:4", "4:2:2", "4:2:0")]
    sources.append((Image.fromarray(picture[..., 0]), "4:4:4"))
    for image, subsampling in sources:
        encoded = BytesIO()
        image.save(encoded, "JPEG", quality=85, subsampling=subsampling)
        ours, theirs = (decode_with(e, encoded.getvalue()).pixels for e in (COMPILED, PILLOW))
        if not np.array_equal(ours, theirs):
            return False
    return True


def _same_resize(picture: Pixels, interpolation: str) -> bool:
    for box, size in _RESIZES:
        ours, theirs = np.empty((2, size, size, 3), np.uint8)
        for out, engine in ((ours, COMPILED), (theirs, PILLOW)):
            resize_crop(picture, box, out, interpolation=interpolation, flip=True, engine=engine)
        if not np.array_equal(ours, theirs):
            return False
    return True


def _same_step(picture: Pixels, step: Step) -> bool:
    ours, theirs = (np.ascontiguousarray(picture).copy() for _ in range(2))
    apply_step(ours, step, engine=COMPILED)
    apply_step(theirs, step, engine=PILLOW)
    return np.array_equal(ours, theirs)
