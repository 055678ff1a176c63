"""Encoded bytes -> RGB pixels, as ImageNet pipelines read them: as stored.

EXIF orientation is not applied, colour profiles are ignored, alpha is dropped. Whatever is wrong
with the bytes ends in one exception, `UnreadableImage`, and no warning escapes: Pillow's readers
are called directly, because `Image.open` warns of big images, and `warnings.catch_warnings` is
not safe among threads.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from threading import Lock
from typing import Self

import numpy as np
import numpy.typing as npt
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

from teacher_cache.pixels.engine import Engine, native
from teacher_cache.views.geometry import PixelBox, crop_box
from teacher_cache.views.view import View

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


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded image, or the part of it that certain views look at."""

    pixels: npt.NDArray[np.uint8]
    """[h, w, 3] red, green, blue, C-contiguous: the part that was decoded."""
    width: int
    """Of the whole image."""
    height: int
    left: int = 0
    """Where the part's corner lies in the image."""
    top: int = 0

    @classmethod
    def of(cls, pixels: npt.NDArray[np.uint8]) -> Self:
        """A whole image from its pixels [H, W, 3]."""
        return cls(pixels, width=pixels.shape[1], height=pixels.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the whole image, as Pillow has it."""
        return self.width, self.height

    def box_of(self, view: View) -> PixelBox:
        """The view's crop in the coordinates of `pixels`.

        Raises:
            ValueError: the picture was decoded for other views, and this crop is not in it.
        """
        left, top, right, bottom = crop_box(view.crops, self.width, self.height)
        box = (left - self.left, top - self.top, right - self.left, bottom - self.top)
        height, width = self.pixels.shape[:2]
        if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height:
            raise ValueError(
                f"the picture holds {width} x {height} pixels from ({self.left}, {self.top}), the "
                f"view's crop is {(left, top, right, bottom)}: decode with `views` that include it"
            )
        return box


def decode_with(engine: Engine, data: bytes, views: Sequence[View] | None = None) -> Picture:
    """Decode to RGB; of a plain JPEG, given `views`, only the part that they look at.

    See `teacher_cache.pixels.render.decode_image`.
    """
    if engine.jpeg and native is not None and data.startswith(b"\xff\xd8\xff"):
        picture = _plain_jpeg(data, views)
        if picture is not None:
            return picture
    try:
        return Picture.of(np.array(_to_rgb(_load(data))))
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:
        # Pillow's readers raise almost anything (SyntaxError, IndexError, struct.error, ...) when
        # the bytes are damaged.
        raise UnreadableImage(f"{len(data):,} bytes, damaged or truncated: {error}") from error


def _plain_jpeg(data: bytes, views: Sequence[View] | None) -> Picture | None:
    """A baseline JPEG by the compiled decoder, or None for Pillow to read it, or to say why not.

    Pillow refuses a JPEG whose data end too early, or hold what is neither bits nor a restart,
    wherever that is. So a file without an end marker is Pillow's, and so is one in which the
    compiled decoder meets anything odd before it, also below the part.
    """
    size = native.jpeg_size(data)
    if size is None or size[0] * size[1] > PIXEL_LIMIT or not _ends(data):
        return None
    width, height = size
    left, top, right, bottom = 0, 0, width, height
    if views:
        boxes = [crop_box(view.crops, width, height) for view in views]
        left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
        right, bottom = max(box[2] for box in boxes), max(box[3] for box in boxes)
    pixels = np.empty((bottom - top, right - left, 3), np.uint8)
    if not native.jpeg_decode(data, pixels, left, top):
        return None
    return Picture(pixels, width, height, left, top)


def _ends(data: bytes) -> bool:
    """Whether an end marker is the last thing, zeros aside."""
    return data.endswith(b"\xff\xd9") or data.rstrip(b"\0").endswith(b"\xff\xd9")


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
