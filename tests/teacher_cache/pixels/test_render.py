"""Rendering: torchvision's and timm's pixels from a view's numbers, at every size."""

import json
import os
import zlib
from hashlib import shake_128

import numpy as np
import pytest
import torch
from pictures import encoded, picture
from PIL import Image
from repository import GOLDEN
from scipy import stats
from timm.data import create_transform
from timm_ops import timm_op
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

from teacher_cache.pixels.render import (
    PIXEL_ENGINE,
    Picture,
    crop_box,
    decode_image,
    erase_box,
    pixel_crc,
    pixel_libraries,
    render,
    render_center,
)
from teacher_cache.views.policy import ViewPolicy
from teacher_cache.views.quantiles import quantiles
from teacher_cache.views.view import Box, View, sample_view

BUSY = ViewPolicy(num_ops=4, op_probability=1, erase=1)


def blank(size):
    return Picture.of(np.zeros((size, size, 3), np.uint8))


def view_of(row, policy=BUSY):
    return sample_view(policy, seed=1, key=f"{row}.png", view=row)


def test_rendering_is_torchvisions_crop_and_resize_then_flip_then_timms_operations():
    decoded = decode_image(encoded(picture(120, 90)))
    image = Image.fromarray(decoded.pixels)
    for row in range(60):
        view = view_of(row, ViewPolicy(op_probability=1, erase=0))
        left, top, right, bottom = crop_box(view.crops, *image.size)
        expected = tvf.resized_crop(
            image, top, left, bottom - top, right - left, [64, 64], InterpolationMode.BICUBIC
        )
        if view.flip:
            expected = tvf.hflip(expected)
        for op in view.ops:
            expected = timm_op(expected, op)
        assert np.array_equal(render(decoded, view, size=64), np.array(expected))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_the_crop_is_resized_with_the_filter_that_was_asked_for(interpolation):
    decoded = decode_image(encoded(picture(50, 40)))
    image = Image.fromarray(decoded.pixels)
    view = View(((2**31, 65536, 2**31, 2**31),), flip=False, ops=(), erase=None, noise_key=b"")
    box = crop_box(view.crops, 50, 40)
    expected = tvf.resize(image.crop(box), [32, 32], InterpolationMode(interpolation))
    pixels = render(decoded, view, size=32, interpolation=interpolation)
    assert np.array_equal(pixels, np.array(expected))


def test_pixels_outside_the_crop_change_nothing():
    view = View(((2**30, 65536, 2**31, 2**31),), flip=False, ops=(), erase=None, noise_key=b"")
    inside = picture(80, 80)
    left, top, right, bottom = crop_box(view.crops, 80, 80)
    other = 255 - inside
    other[top:bottom, left:right] = inside[top:bottom, left:right]
    first, second = (render(Picture.of(pixels), view, size=33) for pixels in (inside, other))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("size", [1, 2, 7, 224])
@pytest.mark.parametrize("shape", [(1, 1), (1, 60), (60, 1), (3, 2), (20_000, 30)])
def test_every_view_of_the_smallest_and_longest_images_renders(size, shape):
    image = Picture.of(picture(*shape))
    for increasing in (False, True):
        policy = BUSY.model_copy(update={"increasing": increasing})
        for row in range(8 if size == 224 else 25):
            pixels = render(image, view_of(row, policy), size=size)
            assert pixels.shape == (size, size, 3)
            assert pixels.dtype == np.uint8
            assert pixels.flags.c_contiguous
            assert pixels.flags.writeable


def test_rendering_leaves_the_image_as_it_was_and_repeats():
    image = decode_image(encoded(picture(64, 48)))
    before = image.pixels.tobytes()
    first = [render(image, view_of(row), size=32) for row in range(30)]
    again = [render(image, view_of(row), size=32) for row in reversed(range(30))][::-1]
    assert image.pixels.tobytes() == before
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": 0}, "size is 0: expected at least 1"),
        ({"size": 8, "interpolation": "cubic"}, "interpolation is 'cubic': expected one of"),
    ],
)
def test_a_wrong_size_or_filter_is_refused_in_plain_words(arguments, words):
    with pytest.raises(ValueError, match=words):
        render(blank(4), view_of(0), **arguments)


def test_the_check_number_is_zlibs_crc_of_the_bytes():
    pixels = picture(5, 4)
    assert pixel_crc(pixels) == zlib.crc32(pixels.tobytes())
    assert pixel_crc(pixels[:, ::-1]) == zlib.crc32(pixels[:, ::-1].tobytes())


def test_the_pixel_libraries_are_named_with_versions():
    libraries = pixel_libraries()
    assert {"pillow", "numpy", "libjpeg_turbo", "zlib", "webp"} <= set(libraries)
    assert libraries["pillow"] == Image.__version__
    assert all(isinstance(version, str) and version for version in libraries.values())


def test_erasing_writes_noise_in_the_box_and_nothing_outside():
    image = Picture.of(picture(60, 60))
    for row in range(20):
        view = view_of(row, ViewPolicy(erase=1))
        plain = View(view.crops, view.flip, view.ops, None, view.noise_key)
        erased, kept = render(image, view, size=96), render(image, plain, size=96)
        left, top, right, bottom = erase_box(view.erase, 96)
        inside = np.zeros((96, 96), bool)
        inside[top:bottom, left:right] = True
        assert np.array_equal(erased[~inside], kept[~inside])
        assert (erased[inside] != kept[inside]).mean() > 0.9


def noise(seed, size=220):
    box = Box(2**32 - 1, 2**32 - 1, 0, 0)
    view = View(((2**31, 65536, 0, 0),), False, (), box, seed.to_bytes(16, "big"))
    return render(blank(8), view, size=size)


def test_erased_pixels_are_timms_gaussian_brought_back_to_uint8():
    ours = np.concatenate([noise(seed).reshape(-1, 3) for seed in range(4)])
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(ours.shape, generator=generator, dtype=torch.float64).numpy()
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    theirs = np.clip(np.floor(255 * (mean + std * normal) + 0.5), 0, 255)
    for channel in range(3):
        one, two = ours[:, channel].astype(float), theirs[:, channel]
        assert abs(one.mean() - two.mean()) < 0.6
        assert abs(one.std() - two.std()) < 0.6
        # 256 levels instead of a continuum: half a level, 1/512, and the samples' own noise.
        assert stats.ks_2samp(one, two).statistic < 1 / 256 + 0.006
    correlation = np.corrcoef(ours.T) - np.eye(3)
    assert np.abs(correlation).max() < 0.01
    rows = noise(9)[..., 0].astype(float)
    neighbours = np.corrcoef(rows[:, 1:].ravel(), rows[:, :-1].ravel())[0, 1]
    assert abs(neighbours) < 0.015


def test_the_noise_is_row_major_from_the_key_by_the_documented_table():
    # docs/views.md in other words: bytes of shake_128 over two netstrings, one a value.
    key = bytes(range(16))
    stream = shake_128(b"14:retort/noise/1,16:" + key + b",").digest(3 * 5 * 4)
    normal = quantiles().standard_normal
    expected = []
    for at, byte in enumerate(stream):
        mean, std = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))[at % 3]
        z = sum(normal[16 * byte : 16 * byte + 16]) / 16 / 65536
        expected.append(min(255, max(0, int(np.floor(255 * (mean + std * z) + 0.5)))))
    height, width = 5, 4
    box = Box(2**32 * height // 20, 2**32 * width // 20, 0, 0)
    view = View(((2**31, 65536, 0, 0),), False, (), box, key)
    pixels = render(blank(8), view, size=20)
    assert pixels[:height, :width].ravel().tolist() == expected
    assert not pixels[height:].any()
    assert not pixels[:, width:].any()


@pytest.mark.parametrize("crop_ratio", [0.875, 0.9, 0.96, 1.0])
@pytest.mark.parametrize("shape", [(120, 90), (91, 133), (64, 64), (300, 40), (17, 13), (30, 300)])
def test_evaluation_sees_timms_pixels(shape, crop_ratio):
    image = Image.fromarray(picture(*shape))
    transform = create_transform(64, interpolation="bicubic", crop_pct=crop_ratio)
    geometry = [
        step for step in transform.transforms if type(step).__name__ in ("Resize", "CenterCrop")
    ]
    expected = image
    for step in geometry:
        expected = step(expected)
    pixels = render_center(Picture.of(picture(*shape)), size=64, crop_ratio=crop_ratio)
    if max(shape) <= 8 * min(shape):
        assert np.array_equal(pixels, np.array(expected))
    else:  # Pillow may then take its two passes in the other order
        assert np.abs(pixels.astype(int) - np.array(expected).astype(int)).max() <= 3


def test_evaluation_of_the_smallest_and_longest_images_works():
    for shape in ((1, 1), (20_000, 1), (1, 20_000), (2, 3)):
        pixels = render_center(Picture.of(picture(*shape)), size=224, crop_ratio=0.9)
        assert pixels.shape == (224, 224, 3)
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable


@pytest.mark.parametrize("crop_ratio", [0.0, 1.01, float("nan")])
def test_a_crop_ratio_outside_0_to_1_is_refused(crop_ratio):
    with pytest.raises(ValueError, match="crop_ratio"):
        render_center(blank(4), size=4, crop_ratio=crop_ratio)


def golden_crcs():
    """CRC-32 of rendered pixels of PNG images: 40 views, both operation sets, two sizes."""
    images = [decode_image(encoded(picture(*s, seed=s[0]))) for s in ((97, 61), (40, 120), (1, 1))]
    crcs = []
    for row in range(40):
        policy = BUSY.model_copy(update={"increasing": row % 2 == 1})
        image, size = images[row % 3], (32, 57)[row % 2]
        crcs.append(pixel_crc(render(image, view_of(row, policy), size=size)))
    crcs += [pixel_crc(render_center(image, size=48, crop_ratio=0.9)) for image in images]
    return crcs


def test_golden_pixels_have_not_moved():
    golden = json.loads((GOLDEN / "views_pixels.json").read_text("utf-8"))
    libraries = {"machine": os.uname().machine, **pixel_libraries()}
    if libraries != golden["libraries"]:
        pytest.skip(f"the golden pixels are those of {golden['libraries']}, not {libraries}")
    assert golden["pixel_engine"] == PIXEL_ENGINE
    assert golden_crcs() == golden["crcs"]
