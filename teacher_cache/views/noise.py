"""The pixels of an erased box are Gaussian noise, drawn from the view's key in exact integers."""

from functools import cache
from hashlib import shake_128

import numpy as np
import numpy.typing as npt

from teacher_cache.views.quantiles import quantiles

# ImageNet's mean and standard deviation of red, green, blue, in thousandths of full scale.
_MEAN_MILLI = (485, 456, 406)
_STD_MILLI = (229, 224, 225)


def noise_pixels(key: bytes, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Gaussian noise [height, width, 3] with ImageNet's mean and standard deviation.

    Each value takes one byte of a SHAKE-128 digest of the key.
    """
    # The fields are netstrings, as in a view's digest: no two pairs of fields give the same bytes.
    stream = shake_128(b"14:retort/noise/1,%d:%b," % (len(key), key)).digest(height * width * 3)
    levels = np.frombuffer(stream, np.uint8).reshape(height * width, 3)
    noise = np.empty_like(levels)
    for channel, table in enumerate(_tables()):
        # nothing is ever clipped: a byte is always a place in the table; "raise" would buffer `out`
        np.take(table, levels[:, channel], out=noise[:, channel], mode="clip")
    return noise.reshape(height, width, 3)


@cache
def _tables() -> tuple[npt.NDArray[np.uint8], ...]:
    """For each channel, the uint8 value that each byte of the digest stands for.

    The 256 bytes divide the Gaussian into equally likely parts. Byte b stands for z, the mean of
    entries 16 b to 16 b + 15 of the committed normal table, and its value is
    round(255 * (mean + std * z)), rounded half up and clipped to uint8. timm's RandomErasing in
    mode 'pixel' draws this noise after normalisation; here it is brought back to uint8.
    """
    normal = quantiles().standard_normal
    sums_q20 = [sum(normal[16 * byte : 16 * byte + 16]) for byte in range(256)]
    channels = []
    for mean, std in zip(_MEAN_MILLI, _STD_MILLI, strict=True):
        # value = 255 * (mean + std * sum / 2^20) / 1000; (2 * value + 1) // 2 rounds half up
        values = [
            (255 * 2 * ((mean << 20) + std * z) + (1000 << 20)) // (2000 << 20) for z in sums_q20
        ]
        channels.append(np.clip(values, 0, 255).astype(np.uint8))
    return tuple(channels)
