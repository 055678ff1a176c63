"""Encoded bytes -> RGB image, as ImageNet pipelines read it: pixels as stored.

EXIF orientation is not applied, colour profiles are ignored, alpha is dropped. Whatever is wrong
with the bytes ends in one exception, `UnreadableImage`, and no warning escapes: Pillow's readers
are called directly, because `Image.open` warns of big images, and `warnings.catch_warnings` is
not safe among threads.
"""

import warnings
from io import BytesIO
from threading import Lock

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

PIXEL_LIMIT = 178_956_970
"""Most pixels an image may have: Pillow's own error limit (2 * (2^30 // 12)), whatever is set."""

_Reader = type[ImageFile.ImageFile]
_JPEG: _Reader = JpegImagePlugin.JpegImageFile
_PNG: _Reader = PngImagePlugin.PngImageFile
# Readers by first bytes, of the formats of image classification data sets. EPS and the like, which
# start other programs, are not among them.
_READERS: dict[bytes, _Reader] = {
    b"\xff\xd8\xff": _JPEG,
    b"\x89PNG\r\n\x1a\n": _PNG,
    b"RIFF": WebPImagePlugin.WebPImageFile,
    b"GIF8": GifImagePlugin.GifImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    **dict.fromkeys((b"P%d" % kind for kind in range(1, 7)), PpmImagePlugin.PpmImageFile),
}
# Of these no header can warn, JPEG's once its metadata is gone.
_SILENT: tuple[_Reader, ...] = (
    _JPEG,
    WebPImagePlugin.WebPImageFile,
    BmpImagePlugin.BmpImageFile,
    PpmImagePlugin.PpmImageFile,
)

_warning_filters = Lock()


class UnreadableImage(ValueError):
    """The bytes hold no image that can be decoded; the message says why in plain words."""


def decode_image(data: bytes) -> Image.Image:
    """Decode a whole image to mode RGB.

    JPEG, PNG, WebP, TIFF, GIF (first frame), BMP and PPM; 1-bit, gray, palette, RGB and CMYK, with
    or without alpha, which is dropped. Of 16 bits a channel the upper 8 are kept.

    Raises:
        UnreadableImage: empty, of another format, truncated or damaged, of more than `PIXEL_LIMIT`
            pixels, or of a pixel format without a fixed range (32-bit integers and floats).
    """
    try:
        return _to_rgb(_load(data))
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:
        # Pillow's readers raise almost anything (SyntaxError, IndexError, struct.error, ...) when
        # the bytes are damaged.
        raise UnreadableImage(f"{len(data):,} bytes, damaged or truncated: {error}") from error


def _load(data: bytes) -> ImageFile.ImageFile:
    """Read with the reader that the first bytes ask for."""
    if not data:
        raise UnreadableImage("the file is empty (0 bytes)")
    reader = next((reader for magic, reader in _READERS.items() if data.startswith(magic)), None)
    if reader is None:
        raise UnreadableImage(
            f"{len(data):,} bytes, not an image in a known format: it starts with {data[:8]!r} "
            "(known: JPEG, PNG, WebP, TIFF, GIF, BMP, PPM)"
        )
    if reader is _JPEG:
        return _loaded(reader, _without_metadata(data))
    if reader in _SILENT or (reader is _PNG and b"acTL" not in data[:4096]):
        return _loaded(reader, data)
    # Broken tags of a TIFF, GIF or animated PNG warn: rare enough for a lock.
    with _warning_filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _loaded(reader, data)


def _loaded(reader: _Reader, data: bytes) -> ImageFile.ImageFile:
    image = reader(BytesIO(data))
    width, height = image.size
    if width * height > PIXEL_LIMIT:
        raise UnreadableImage(
            f"{width} x {height} is {width * height:,} pixels: the limit is {PIXEL_LIMIT:,}"
        )
    image.load()
    return image


def _without_metadata(data: bytes) -> bytes:
    """A JPEG without its EXIF, XMP, ICC, MPF and Photoshop segments (APP1 to APP13) and comments.

    None of them changes a pixel, and Pillow's readers of them are slow and warn of broken ones.
    JFIF (APP0) and Adobe (APP14: whether CMYK is inverted) stay. Anything unexpected in the header
    is left as it is, for the decoder to judge.
    """
    kept = [data[:2]]
    at = 2
    while data[at : at + 1] == b"\xff" and len(data) > at + 4:
        if data[at + 1] == 0xFF:
            at += 1  # a fill byte
            continue
        marker = data[at + 1]
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker <= 0x01 or 0xD0 <= marker <= 0xDA or not at + 4 <= end <= len(data):
            break  # the scan (0xDA), or nothing that has a length
        if not (0xE1 <= marker <= 0xED or marker == 0xFE):
            kept.append(data[at:end])
        at = end
    kept.append(data[at:])
    return b"".join(kept)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "I" and image.format in ("PNG", "PPM"):
        # These readers give 16-bit gray as 32-bit integers (PNG's only in older Pillow).
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "I":
        raise UnreadableImage("32-bit integer pixels have no fixed range: convert to 8 or 16 bits")
    elif image.mode == "F":
        raise UnreadableImage("floating-point pixels have no fixed range: convert to 8 or 16 bits")
    # A transparent colour is alpha too; converting a palette with it would warn.
    image.info.pop("transparency", None)
    return image.convert("RGB")
