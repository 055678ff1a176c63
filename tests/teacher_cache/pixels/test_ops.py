"""RandAugment's pixel operations are timm's, pixel for pixel, by either engine."""

import numpy as np
import pytest
from pictures import picture
from PIL import Image
from timm.data import auto_augment, create_transform
from timm_ops import timm_op

from teacher_cache.pixels.engine import PILLOW
from teacher_cache.pixels.ops import FILL, apply_op
from teacher_cache.pixels.selftest import proved_engine
from teacher_cache.views.policy import RAND_AUGMENT_INCREASING_OPS, RAND_AUGMENT_OPS
from teacher_cache.views.view import Op

ENGINES = {"compiled": proved_engine(), "pillow": PILLOW}


def applied(pixels, op, engine=PILLOW):
    changed = pixels.copy()
    apply_op(changed, op, engine=engine)
    return changed


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
@pytest.mark.parametrize("name", sorted({*RAND_AUGMENT_OPS, *RAND_AUGMENT_INCREASING_OPS}))
def test_an_operation_is_timms_pixel_for_pixel(name, engine):
    levels = [0, 1, 65536, 3 * 65536 + 12345, 5 * 65536, 589824, 600001, 10 * 65536 - 1, 10 * 65536]
    changed = 0
    for width, height in ((56, 56), (31, 47), (1, 1)):
        pixels = picture(width, height, seed=3)
        image = Image.fromarray(pixels)
        for level in levels:
            for negate in (False, True):
                op = Op(name, level, negate)
                ours, theirs = applied(pixels, op, engine), np.array(timm_op(image, op))
                assert np.array_equal(ours, theirs), op
                changed += not np.array_equal(ours, pixels)
    assert changed > 0


def test_timms_default_fill_and_range_are_what_we_fix():
    transform = create_transform(
        224, is_training=True, auto_augment="rand-m9-mstd0.5", interpolation="bilinear"
    )
    op = next(step for step in transform.transforms if hasattr(step, "ops")).ops[0]
    assert op.kwargs == {"fillcolor": FILL, "resample": Image.Resampling.BILINEAR}
    assert auto_augment._translate_rel_level_to_arg(10, op.hparams)[0] in (0.45, -0.45)
    steps = [type(step).__name__ for step in transform.transforms]
    order = ["RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment"]
    assert [step for step in steps if step in order] == order


def test_posterize_keeps_at_least_one_bit():
    for op in (Op("Posterize", 0, False), Op("PosterizeIncreasing", 10 * 65536, False)):
        assert set(np.unique(applied(picture(16, 16), op))) == {0, 128}


def test_an_unknown_operation_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'Cutout': expected one of AutoContrast"):
        applied(picture(4, 4), Op("Cutout", 0, False))
