"""The fastest way to a view that libraries alone offer: does the compiled engine earn its C?

    pip install opencv-python-headless
    RETORT_DATA=... python -m benchmarks.best_libraries

torchvision decodes (libjpeg-turbo), torch resizes the crop (bicubic, antialiased), OpenCV does the
operations; the same views, with the same arguments. Its pixels are not a view's: torch's weights
are coarser than Pillow's, and OpenCV interpolates in steps of 1/32 of a pixel.
"""

from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.machine import describe, interleaved, print_ratios
from benchmarks.pixels import SIZE, Sample
from teacher_cache.pixels.ops import FILL, Pixels, step_of
from teacher_cache.pixels.selftest import proved_engine
from teacher_cache.views.geometry import crop_box, erase_box
from teacher_cache.views.noise import noise_pixels
from teacher_cache.views.view import View

LEVELS = np.arange(256)
SMOOTH = np.float32([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13


def library_view(data: bytes, view: View) -> Pixels:
    """Encoded JPEG -> uint8 [SIZE, SIZE, 3], close to what `render` makes of the view."""
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    image_CHW = decode_jpeg(encoded, mode=ImageReadMode.RGB)
    left, top, right, bottom = crop_box(view.crops, image_CHW.shape[2], image_CHW.shape[1])
    crop_1CHW = image_CHW[None, :, top:bottom, left:right]
    square_CHW = interpolate(crop_1CHW, size=(SIZE, SIZE), mode="bicubic", antialias=True)[0]
    pixels = np.ascontiguousarray(square_CHW.permute(1, 2, 0).numpy())
    if view.flip:
        pixels = cv2.flip(pixels, 1)
    for op in view.ops:
        step = step_of(op, SIZE, SIZE)
        pixels = STEPS[step.name](pixels, step.argument)
    if view.erase is not None:
        left, top, right, bottom = erase_box(view.erase, SIZE)
        pixels[top:bottom, left:right] = noise_pixels(view.noise_key, bottom - top, right - left)
    return pixels


def _affine(pixels: Pixels, matrix: tuple[float, ...]) -> Pixels:
    rows = np.float64(matrix).reshape(2, 3)
    rows[:, 2] += (rows[:, 0] + rows[:, 1] - 1) / 2  # Pillow's pixels have their centres at 1/2
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(pixels, rows, (SIZE, SIZE), flags=flags, borderValue=FILL)


def _per_channel(change: Callable[[Pixels], Pixels]) -> Callable[[Pixels, None], Pixels]:
    return lambda pixels, _: cv2.merge([change(channel) for channel in cv2.split(pixels)])


def _stretched(channel: Pixels) -> Pixels:
    return cv2.normalize(channel, None, 0, 255, cv2.NORM_MINMAX)


def _table(levels: Callable[[float], np.ndarray]) -> Callable[[Pixels, float], Pixels]:
    return lambda pixels, argument: cv2.LUT(
        pixels, np.clip(levels(argument), 0, 255).astype(np.uint8)
    )


def _blended(pixels: Pixels, degenerate: Pixels, factor: float) -> Pixels:
    return cv2.addWeighted(pixels, factor, degenerate, 1 - factor, 0)


def _color(pixels: Pixels, factor: float) -> Pixels:
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return _blended(pixels, cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB), factor)


def _contrast(pixels: Pixels, factor: float) -> Pixels:
    mean = cv2.mean(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[0]
    levels = LEVELS * factor + round(mean) * (1 - factor)
    return cv2.LUT(pixels, np.clip(levels, 0, 255).astype(np.uint8))


STEPS: dict[str, Callable] = {
    "affine": _affine,
    "autocontrast": _per_channel(_stretched),
    "equalize": _per_channel(cv2.equalizeHist),
    "invert": _table(lambda _: 255 - LEVELS),
    "posterize": _table(lambda bits: LEVELS >> (8 - int(bits)) << (8 - int(bits))),
    "solarize": _table(lambda threshold: np.where(threshold > LEVELS, LEVELS, 255 - LEVELS)),
    "solarize_add": _table(lambda added: np.where(LEVELS < 128, LEVELS + added, LEVELS)),
    "brightness": _table(lambda factor: LEVELS * factor),
    "color": _color,
    "contrast": _contrast,
    "sharpness": lambda pixels, factor: _blended(pixels, cv2.filter2D(pixels, -1, SMOOTH), factor),
}


def main(repeats: int = 15) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    sample, engine = Sample(), proved_engine()
    differences = [
        np.abs(library_view(data, view).astype(int) - sample.render_one(data, view, engine)).mean()
        for data, view in zip(sample.encoded, sample.views(), strict=True)
    ]
    print(f"best_libraries: {len(sample.encoded)} real JPEGs to {SIZE} px, one core")
    print(f"  mean difference of a pixel {np.median(differences):.2f} of 255 (median image)")

    def library() -> None:
        for data, view in zip(sample.encoded, sample.views(), strict=True):
            library_view(data, view)

    seconds = interleaved(
        {f"retort, {engine}": lambda: sample.render(engine), "libraries": library}, repeats=repeats
    )
    print_ratios(seconds, to=f"retort, {engine}")


if __name__ == "__main__":
    print(describe(), f"opencv {cv2.__version__}", sep=", ")
    main()
