"""Decoding: every image that a folder may hold, and every file that is none."""

import os
import random
import struct
import threading
import warnings
from contextlib import suppress
from hashlib import shake_128
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pictures import (
    broken_apng,
    broken_exif_jpeg,
    broken_mpo_jpeg,
    broken_tiff,
    encoded,
    picture,
    png,
)
from PIL import Image

from teacher_cache.pixels.render import PIXEL_LIMIT, UnreadableImage, decode_image, render
from teacher_cache.views.policy import ViewPolicy
from teacher_cache.views.view import sample_view


def view_of(row):
    return sample_view(ViewPolicy(), seed=1, key=f"{row}.png", view=row)


def test_png_pixels_are_exact_and_jpeg_pixels_are_pillows():
    pixels = picture(33, 21)
    assert np.array_equal(decode_image(encoded(pixels)).pixels, pixels)
    jpeg = encoded(pixels, "JPEG", quality=90)
    with Image.open(BytesIO(jpeg)) as expected:
        assert np.array_equal(decode_image(jpeg).pixels, np.array(expected))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_decode_to_the_same_pixels(kind):
    gray = np.repeat(picture(16, 12)[..., :1], 3, axis=-1)  # at most 256 colours, for GIF
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode_image(encoded(gray, kind, **options))
    assert np.array_equal(image.pixels, gray)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_png_comes_out_as_rgb(mode):
    source = Image.fromarray(picture(20, 10)).convert(mode)
    image = decode_image(encoded(source))
    assert np.array_equal(image.pixels, np.array(source.convert("RGB")))


def test_alpha_is_dropped_and_colour_under_it_kept():
    colour = picture(12, 12)
    alpha = np.zeros((12, 12, 1), np.uint8)
    image = decode_image(encoded(np.concatenate([colour, alpha], axis=-1)))
    assert np.array_equal(image.pixels, colour)


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_a_palette_with_transparency_keeps_its_colours(transparency):
    source = Image.fromarray(picture(20, 10)).quantize(200)
    data = encoded(source, transparency=transparency)
    assert np.array_equal(decode_image(data).pixels, np.array(source.convert("RGB")))


@pytest.mark.parametrize(("mode", "value"), [("L", 7), ("RGB", (1, 2, 3))])
def test_a_transparent_colour_changes_nothing(mode, value):
    source = Image.fromarray(picture(20, 10)).convert(mode)
    data = encoded(source, transparency=value)
    assert np.array_equal(decode_image(data).pixels, np.array(source.convert("RGB")))


def test_a_cmyk_jpeg_is_converted_as_pillow_does():
    source = Image.fromarray(picture(40, 30)).convert("CMYK")
    data = encoded(source, "JPEG", quality=95)
    with Image.open(BytesIO(data)) as expected:
        assert expected.mode == "CMYK"
        assert np.array_equal(decode_image(data).pixels, np.array(expected.convert("RGB")))


@pytest.mark.parametrize(
    ("color_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["L", "RGB", "LA", "RGBA"]
)
def test_of_16_bits_the_upper_8_are_kept(color_type, channels):
    values = np.frombuffer(shake_128(b"16").digest(5 * 4 * channels * 2), ">u2")
    values = values.reshape(4, 5, channels)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    image = decode_image(png(5, 4, 16, color_type, rows))
    colours = values[..., : 3 if channels > 2 else 1] >> 8
    assert np.array_equal(image.pixels, np.broadcast_to(colours, (4, 5, 3)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_scaled_and_never_clipped(kind):
    values = np.arange(0, 65536, 257 * 5, dtype=np.uint16).reshape(4, -1)
    image = decode_image(encoded(Image.fromarray(values), kind))
    assert np.array_equal(image.pixels[..., 1], values >> 8)


@pytest.mark.parametrize(("dtype", "words"), [(np.int32, "32-bit"), (np.float32, "floating")])
def test_pixels_without_a_fixed_range_are_refused(dtype, words):
    data = encoded(Image.fromarray(np.ones((4, 4), dtype)), "TIFF")
    with pytest.raises(UnreadableImage, match=words):
        decode_image(data)


def test_exif_orientation_is_not_applied():
    source = Image.fromarray(picture(30, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter when shown
    assert decode_image(encoded(source, "JPEG", exif=exif)).size == (30, 20)
    assert decode_image(encoded(source, "PNG", exif=exif)).size == (30, 20)


def test_a_jpegs_metadata_changes_no_pixel():
    pixels = picture(40, 30)
    plain = encoded(pixels, "JPEG")
    segments = b"".join(
        b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(body)) + body
        for marker, body in [
            (0xE1, b"Exif\0\0" + b"\xff" * 50),
            (0xE2, b"ICC_PROFILE\0\1\1" + bytes(100)),
            (0xED, b"Photoshop 3.0\0" + bytes(9)),
            (0xFE, b"a comment \xff\xda"),
        ]
    )
    loaded = plain[:2] + segments + b"\xff" + plain[2:]  # and a fill byte
    assert np.array_equal(decode_image(loaded).pixels, decode_image(plain).pixels)


@pytest.mark.parametrize("make", [broken_exif_jpeg, broken_mpo_jpeg, broken_apng, broken_tiff])
def test_no_warning_escapes_from_broken_metadata(make):
    data = make()
    with warnings.catch_warnings(record=True) as from_pillow:
        warnings.simplefilter("always")
        Image.open(BytesIO(data)).load()
    assert from_pillow, "this file is here because Pillow's own opening warns of it"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert decode_image(data).size == (20, 20)
    assert not caught


def test_pillows_global_limit_neither_warns_nor_is_changed(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    for kind in ("JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP"):
        assert decode_image(encoded(picture(20, 20), kind)).size == (20, 20)
    assert Image.MAX_IMAGE_PIXELS == 300


def test_decoding_in_threads_is_quiet_right_and_leaves_the_warning_filters():
    sources = [encoded(picture(30, 20)), broken_exif_jpeg(), broken_apng(), broken_tiff()]
    expected = [decode_image(data).pixels.tobytes() for data in sources]
    before, failures = list(warnings.filters), []

    def decode_all():
        try:
            for _ in range(20):
                assert [decode_image(data).pixels.tobytes() for data in sources] == expected
        except BaseException as error:  # noqa: BLE001 - reported by the main thread
            failures.append(error)

    threads = [threading.Thread(target=decode_all) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert warnings.filters == before


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\0" * 1000, "not an image in a known format"),
        (b"<!DOCTYPE html><html>404</html>", "not an image .* b'<!DOCTYP'"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "damaged"),
        (b"\xff\xd8\xff", "damaged or truncated"),
        (b"\x89PNG\r\n\x1a\n", "damaged or truncated"),
        (b"BM", "damaged or truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_what_is_no_image_is_refused_in_plain_words(data, words):
    with pytest.raises(UnreadableImage, match=words):
        decode_image(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_image_is_refused(kind, share):
    data = encoded(picture(64, 64), kind)
    with pytest.raises(UnreadableImage, match="damaged or truncated"):
        decode_image(data[: int(len(data) * share)])


def test_flipped_bytes_give_an_image_or_unreadable_image_and_nothing_else():
    generator = random.Random(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        data = encoded(picture(24, 24), kind)
        for _ in range(150):
            damaged = bytearray(data)
            for _ in range(generator.randint(1, 4)):
                damaged[generator.randrange(min(len(data), 400))] = generator.randrange(256)
            with suppress(UnreadableImage):
                assert decode_image(bytes(damaged)).pixels.ndim == 3


def test_an_image_of_20_000_pixels_width_works_and_one_above_the_limit_is_refused():
    wide = decode_image(encoded(Image.new("L", (20_000, 40), 9), "JPEG"))
    assert wide.size == (20_000, 40)
    assert render(wide, view_of(0), size=16).shape == (16, 16, 3)
    bomb = png(20_000, 10_000, 8, 2, b"")
    with pytest.raises(UnreadableImage, match="20000 x 10000 is 200,000,000 pixels: the limit is"):
        decode_image(bomb)
    assert PIXEL_LIMIT == 2 * (2**30 // 12)


def test_a_1x1_image_of_every_format_decodes():
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        assert decode_image(encoded(Image.new("RGB", (1, 1), (9, 9, 9)), kind)).size == (1, 1)


def test_real_images_decode_as_pillow_decodes_them_and_render():
    if "RETORT_DATA" not in os.environ:
        pytest.skip("set RETORT_DATA to a folder with imagenet-sample/ to read real JPEGs")
    paths = sorted(Path(os.environ["RETORT_DATA"], "imagenet-sample").rglob("*.JPEG"))[::10]
    assert paths
    for row, path in enumerate(paths):
        data = path.read_bytes()
        image = decode_image(data)
        with Image.open(BytesIO(data)) as expected:
            assert np.array_equal(image.pixels, np.array(expected.convert("RGB"))), path
        assert render(image, view_of(row), size=224).shape == (224, 224, 3)
