"""Encoded bytes -> RGB pixels as the file stores them, which is how ImageNet pipelines read them.

EXIF orientation is not applied, colour profiles are ignored, and alpha is dropped. A TIFF's own
orientation tag is applied: Pillow applies it, so timm and torchvision see it. Whatever is wrong
with the bytes raises one exception, `UnreadableImage`, and no warning escapes. Pillow's readers
are called directly for that reason: `Image.open` warns of big images, and
`warnings.catch_warnings` is not safe with threads.
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
"""The most pixels that an image may have.

It is Pillow's own limit for an error, 2 * (2^30 // 12), whatever `Image.MAX_IMAGE_PIXELS` is set
to.
"""

_Reader = type[ImageFile.ImageFile]
_JPEG: _Reader = JpegImagePlugin.JpegImageFile
_PNG: _Reader = PngImagePlugin.PngImageFile
# Pillow's readers by the bytes that a file begins with, for the formats that image classification
# data sets come in. Readers that start other programs, such as that of EPS, are not among them.
_READERS: dict[bytes, _Reader] = {
    b"\xff\xd8\xff": _JPEG,
    b"\x89PNG\r\n\x1a\n": _PNG,
    b"RIFF": WebPImagePlugin.WebPImageFile,
    b"GIF8": GifImagePlugin.GifImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImagePlugin.TiffImageFile),
    **dict.fromkeys((b"P%d" % kind for kind in range(1, 7)), PpmImagePlugin.PpmImageFile),
}
# These readers warn of nothing that a header may hold; JPEG's does not once the metadata are
# removed.
_SILENT: tuple[_Reader, ...] = (
    _JPEG,
    WebPImagePlugin.WebPImageFile,
    BmpImagePlugin.BmpImageFile,
    PpmImagePlugin.PpmImageFile,
)

_warning_filters = Lock()


class UnreadableImage(ValueError):
    """The bytes are no image that can be decoded; the message says why in plain words."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A decoded image, or the part of it that certain views look at."""

    pixels: npt.NDArray[np.uint8]
    """[h, w, 3] red, green, blue, C-contiguous: the part of the image that was decoded."""
    width: int
    """Width of the whole image in pixels."""
    height: int
    """Height of the whole image in pixels."""
    left: int = 0
    """The image's column at which the decoded part begins."""
    top: int = 0
    """The image's row at which the decoded part begins."""

    @classmethod
    def of(cls, pixels: npt.NDArray[np.uint8]) -> Self:
        """A picture of a whole image, from its pixels [H, W, 3]."""
        return cls(pixels, width=pixels.shape[1], height=pixels.shape[0])

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the whole image, in the order that Pillow uses."""
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
    """Decode to RGB. Of a baseline JPEG only the part that the `views` look at is decoded.

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
        # Given damaged bytes, Pillow's readers raise almost anything (SyntaxError, IndexError,
        # struct.error, ...).
        raise UnreadableImage(
            f"the {len(data):,} bytes are damaged or truncated: {error}"
        ) from error


def _plain_jpeg(data: bytes, views: Sequence[View] | None) -> Picture | None:
    """Decode a baseline JPEG with the compiled decoder; None where Pillow must judge the file.

    Pillow refuses a JPEG whose data end too early, and one with other markers than restarts in its
    entropy-coded data, wherever they are. So Pillow gets each file that does not end in an EOI
    marker, and each in which the compiled decoder finds anything unusual before that marker, even
    below the part that is decoded.
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
    """Whether the data end in an EOI marker; zero bytes may follow it."""
    return data.endswith(b"\xff\xd9") or data.rstrip(b"\0").endswith(b"\xff\xd9")


def _load(data: bytes) -> ImageFile.ImageFile:
    """Open and decode an image with the reader for its first bytes."""
    if not data:
        raise UnreadableImage("the file is empty (0 bytes)")
    reader = next((reader for magic, reader in _READERS.items() if data.startswith(magic)), None)
    if reader is None:
        raise UnreadableImage(
            f"the {len(data):,} bytes are not an image in a known format: they start with "
            f"{data[:8]!r} (known: JPEG, PNG, WebP, TIFF, GIF, BMP, PPM)"
        )
    if reader is _JPEG:
        return _loaded(reader, _without_metadata(data))
    if reader is _PNG:
        data = _without_text(data)
    if reader in _SILENT or (reader is _PNG and b"acTL" not in data[:4096]):
        return _loaded(reader, data)
    # Broken tags of a TIFF, GIF or animated PNG raise warnings. These formats are rare in data
    # sets, so their threads may wait for each other.
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
    """A JPEG without comments and without EXIF, XMP, ICC, MPF and Photoshop segments (APP1-APP13).

    None of these changes a pixel; Pillow reads them slowly and warns of broken ones. JFIF (APP0)
    and Adobe (APP14, which says whether CMYK is inverted) stay. Bytes between segments, which are
    left of a segment that is longer than it says, go, since decoders pass over them. From anything
    else that is unexpected in the header on everything stays as it is, for the decoder to judge.
    """
    kept = [data[:2]]
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and len(data) > at + 4:
        if data[at + 1] == 0xFF:
            at += 1  # a fill byte
            continue
        marker = data[at + 1]
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker <= 0x01 or 0xD0 <= marker <= 0xDA or not at + 4 <= end <= len(data):
            break  # the scan (0xDA), or a marker without a length
        if not (0xE1 <= marker <= 0xED or marker == 0xFE):
            kept.append(data[at:end])
        at = end
    kept.append(data[at:] if at >= 0 else b"")
    return b"".join(kept)


_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


def _without_text(data: bytes) -> bytes:
    """A PNG without its texts and colour profile, which Pillow refuses where they are large."""
    kept, at, start = [], 8, 0
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] in _TEXT and end <= len(data):
            kept.append(data[start:at])
            start = end
        at = end
    return b"".join([*kept, data[start:]]) if kept else data


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        image = Image.fromarray(_upper_bits(image))
    elif image.mode == "I" and image.format in ("PNG", "PPM"):
        # These readers give 16-bit gray as 32-bit integers; PNG's does so in older Pillow only.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "I":
        raise UnreadableImage("32-bit integer pixels have no fixed range: convert to 8 or 16 bits")
    elif image.mode == "F":
        raise UnreadableImage("floating-point pixels have no fixed range: convert to 8 or 16 bits")
    # A transparent colour is alpha, too, and Pillow would warn of it when it converts a palette.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def _upper_bits(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The upper 8 of the 12 or 16 bits of a gray picture; 0 is black, whatever a TIFF begins at."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    (bits,) = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))
    upper: npt.NDArray[np.uint8] = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    return 255 - upper if white_is_zero else upper
