"""Sound pictures in odd files: what Pillow and torchvision read, is read, to the same pixels."""

import io
import struct
import warnings
import zlib
from hashlib import shake_128

import numpy as np
import pytest
from pictures import encoded, picture, png
from PIL import Image

from teacher_cache.pixels.render import decode_image

JPEG = encoded(picture(40, 32), "JPEG")


def by_pillow(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def segment(marker, body, length=None):
    return bytes([0xFF, marker]) + struct.pack(">H", length or len(body) + 2) + body


def boundaries(jpeg):
    at, found = 2, []
    while jpeg[at + 1] != 0xDA:
        found.append(at)
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return [*found, at]


@pytest.mark.parametrize("marker", [0xED, 0xE1, 0xE2, 0xFE], ids=["APP13", "APP1", "APP2", "COM"])
def test_a_jpeg_whose_metadata_is_longer_than_it_says(marker):
    body = b"Photoshop 3.0\0" + bytes(range(1, 40))
    for at in boundaries(JPEG):
        for length in range(len(body) - 20, len(body) + 3):
            data = JPEG[:at] + segment(marker, body, length) + JPEG[at:]
            np.testing.assert_array_equal(decode_image(data).pixels, by_pillow(data))


def test_a_jpeg_with_stray_bytes_before_a_marker():
    for junk in (b"\0", b"abc", b"\xff", b"\xff\xff\xff", b"\x12\xff"):
        for at in boundaries(JPEG)[1:]:
            data = JPEG[:at] + junk + JPEG[at:]
            np.testing.assert_array_equal(decode_image(data).pixels, by_pillow(data))


@pytest.mark.parametrize("name", [b"tEXt", b"zTXt", b"iTXt", b"iCCP"])
def test_a_png_with_megabytes_of_text_or_colour_profile(name):
    rows = b"".join(b"\0" + bytes(range(60)) for _ in range(20))
    text = shake_128(b"text").digest(2_100_000).replace(b"\0", b"\1")
    heads = {b"tEXt": b"k\0", b"zTXt": b"k\0\0", b"iTXt": b"k\0\1\0\0\0", b"iCCP": b"k\0\0"}
    body = heads[name] + (text if name == b"tEXt" else zlib.compress(text))
    plain = png(20, 20, 8, 2, rows)
    expected = decode_image(plain).pixels
    for count in (1, 60 if name == b"tEXt" else 1):
        data = png(20, 20, 8, 2, rows, *[(name, body)] * count)
        np.testing.assert_array_equal(decode_image(data).pixels, expected)
    after = plain[:-12] + data[data.index(name) - 4 :][: len(body) + 12] + plain[-12:]
    np.testing.assert_array_equal(decode_image(after).pixels, expected)


def tiff(bits, photometric, pixels, side):
    """A gray TIFF by hand, little-endian, of one strip."""
    tags = [
        (256, side), (257, side), (258, bits), (259, 1), (262, photometric), (273, 0), (277, 1),
        (278, side), (279, len(pixels)),
    ]  # fmt: skip
    offset = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII", tag, 4, 1, offset if tag == 273 else value) for tag, value in tags
    )
    head = struct.pack("<4sIH", b"II*\0", 8, len(tags))
    return head + entries + bytes(4) + pixels


def test_white_is_white_in_a_tiff_of_12_or_16_bits():
    assert (decode_image(tiff(12, 1, b"\xff" * 96, 8)).pixels == 255).all()
    assert (decode_image(tiff(12, 1, b"\x80\x08\x00" * 32, 8)).pixels == 128).all()
    assert (decode_image(tiff(16, 1, b"\xff" * 128, 8)).pixels == 255).all()
    assert (decode_image(tiff(16, 1, b"\x00\x80" * 64, 8)).pixels == 128).all()
    # where white is zero, as fax machines and some scanners have it
    assert (decode_image(tiff(16, 0, b"\xff" * 128, 8)).pixels == 0).all()
    assert (decode_image(tiff(16, 0, bytes(128), 8)).pixels == 255).all()
    assert (decode_image(tiff(8, 0, b"\xff" * 64, 8)).pixels == 0).all()


def test_orientation_is_applied_to_a_tiff_alone():
    image = Image.fromarray(picture(20, 10))
    turned = encoded(image, "TIFF", tiffinfo={274: 6})
    np.testing.assert_array_equal(decode_image(turned).pixels, np.rot90(picture(20, 10), -1))
    np.testing.assert_array_equal(decode_image(turned).pixels, by_pillow(turned))
    exif = Image.Exif()
    exif[274] = 6
    for kind in ("PNG", "JPEG", "WEBP"):
        assert decode_image(encoded(image, kind, exif=exif.tobytes())).size == (20, 10)
