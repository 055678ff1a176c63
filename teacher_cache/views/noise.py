"""The pixels of an erased box: Gaussian noise from the view's noise key, in exact integers."""

from functools import cache
from hashlib import shake_128

import numpy as np
import numpy.typing as npt

from teacher_cache.views.quantiles import quantiles

# ImageNet's mean and standard deviation of red, green, blue, in thousandths of full scale.
_MEAN_MILLI = (485, 456, 406)
_STD_MILLI = (229, 224, 225)


def noise_pixels(key: bytes, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Gaussian noise [height, width, 3] with ImageNet's mean and std, one digest byte a value."""
    stream = shake_128(b"14:retort/noise/1,%d:%b," % (len(key), key)).digest(height * width * 3)
    levels = np.frombuffer(stream, np.uint8).reshape(height * width, 3)
    noise = np.empty_like(levels)
    for channel, table in enumerate(_tables()):
        np.take(table, levels[:, channel], out=noise[:, channel], mode="clip")
    return noise.reshape(height, width, 3)


@cache
def _tables() -> tuple[npt.NDArray[np.uint8], ...]:
    """For each channel the uint8 value of each byte: 256 equally likely parts of the Gaussian.

    Byte b stands for the mean of entries 16 b to 16 b + 15 of the committed normal table, z; its
    value is round(255 * (mean + std * z)), halves up, clipped: what timm's RandomErasing in mode
    'pixel' draws after normalisation, brought back to uint8.
    """
    normal = quantiles().standard_normal
    sums_q20 = [sum(normal[16 * byte : 16 * byte + 16]) for byte in range(256)]
    channels = []
    for mean, std in zip(_MEAN_MILLI, _STD_MILLI, strict=True):
        # value = 255 * (mean + std * sum / 2^20) / 1000; twice it plus one, halved, rounds.
        values = [
            (255 * 2 * ((mean << 20) + std * z) + (1000 << 20)) // (2000 << 20) for z in sums_q20
        ]
        channels.append(np.clip(values, 0, 255).astype(np.uint8))
    return tuple(channels)
