"""Pictures for the tests, from integers alone, and files of them: good, odd and broken."""

import struct
import zlib
from hashlib import shake_128
from io import BytesIO

import numpy as np
from PIL import Image


def picture(width, height, seed=0):
    """A picture with smooth parts, edges and noise, from integers alone."""
    y, x = np.mgrid[:height, :width]
    noise = np.frombuffer(shake_128(b"%d" % seed).digest(height * width * 3), np.uint8)
    channels = [
        (255 * x // max(1, width - 1)) ^ (seed * 37 & 255),
        255 * y // max(1, height - 1),
        np.where((x // 9 + y // 7) % 2, 200, 40),
    ]
    smooth = np.stack(channels, axis=-1).astype(np.uint16)
    return (smooth * 3 // 4 + noise.reshape(height, width, 3) // 4).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    stream = BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        stream, kind, **options
    )
    return stream.getvalue()


def png(width, height, bits, color_type, rows, *chunks):
    """A PNG by hand, for what Pillow cannot write: 16-bit colour, broken chunks."""
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )


def broken_exif_jpeg():
    # A tag of 1,000 values that are not there, in a JPEG without JFIF's own resolution.
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 1, 0x010F, 2, 1000, 5000) + bytes(4)
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif
    jpeg = encoded(picture(20, 20), "JPEG")
    without_jfif = jpeg[:2] + jpeg[4 + int.from_bytes(jpeg[4:6], "big") :]
    return without_jfif[:2] + segment + without_jfif[2:]


def broken_mpo_jpeg():
    jpeg = encoded(picture(20, 20), "JPEG")
    body = b"MPF\0II*\0" + struct.pack("<IH", 8, 1)
    return jpeg[:2] + b"\xff\xe2" + struct.pack(">H", 2 + len(body)) + body + jpeg[2:]


def broken_apng():
    rows = b"".join(b"\0" + bytes(20) for _ in range(20))
    return png(20, 20, 8, 0, rows, (b"acTL", struct.pack(">II", 0, 0)))


def broken_tiff():
    # The last tag says that its values are beyond the end.
    tiff = encoded(picture(20, 20), "TIFF", tiffinfo={65000: "x" * 500})
    entry = tiff.index(struct.pack("<HH", 65000, 2))
    return tiff[: entry + 8] + struct.pack("<I", 10**6) + tiff[entry + 12 :]
