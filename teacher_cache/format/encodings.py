"""The encodings of records in a chunk, and how they are decoded. The manifest names the encoding.

The encoding `compact` stores the square root of each negative log-probability as a whole number:

    code = round(SCALE sqrt(-logp))        logp = -(code / SCALE)^2

An error e of logp of a class of probability p costs 1/2 sum p e^2 nats of KL. A step of the code is
1 / SCALE, so e is uniform over a range of 2 sqrt(-logp) / SCALE, and the cost is H / (6 SCALE^2),
where H is the entropy of the kept classes. So likely classes are as accurate as KL needs them, and
unlikely ones take fewer bits.
"""

from functools import cache

import numpy as np

from teacher_cache.format.bounded_codecs import decode_pcodec, decode_zstd
from teacher_cache.record import Encoding

SCALE = 320
"""Codes a unit of the square root: 10 bits reach a logp of -10.2, and 16 bits one of -41,940."""
NO_CODE = 65535
"""The code of a record that is absent; it decodes to NaN."""
_LOWEST = NO_CODE - 1
"""The code of the lowest logp, and of everything below it."""


def kl_cost(encoding: Encoding, k: int) -> float:
    """The mean cost of an encoding for a teacher's answer, in nats of KL, at its highest.

    The entropy of the kept classes is highest, log k, if all of them are equally likely.
    """
    return float(np.log(k)) / (6 * SCALE**2) if encoding is Encoding.COMPACT else 0.0


def stored_logp(logp: np.ndarray, encoding: Encoding) -> np.ndarray:
    """float16 log-probabilities as their array stores them, which is as uint16 codes if compact."""
    if encoding is not Encoding.COMPACT:
        return logp
    absent = np.isnan(logp)
    root = np.sqrt(np.where(absent, 0.0, -logp.astype(np.float64)))
    codes = np.minimum(np.rint(SCALE * root), _LOWEST)
    return np.where(absent, NO_CODE, codes).astype(np.uint16)


def restored_logp(codes: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The float16 log-probabilities of codes, correctly rounded; `NO_CODE` becomes NaN."""
    found: np.ndarray = np.take(_logp_of_codes(), codes, out=out, mode="clip")
    return found


@cache
def _logp_of_codes() -> np.ndarray:
    logp = -((np.arange(NO_CODE + 1) / SCALE) ** 2)
    logp[NO_CODE] = np.nan
    return logp.astype(np.float16)


_ROUNDING = 2.0**-11 * (1 + 2.0**-10)
_LEAST_ROUNDING = 2.0**-24
"""The most by which a rounding to float16 moves a value: half a step, relatively or, near zero,
absolutely. Both bounds are slightly larger, by more than float64 arithmetic with up to 10^7 classes
can be wrong."""


@cache
def ranges_of_halves() -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest number that each float16 may have been rounded from.

    The lowest finite float16 also stands for everything below it (`record.LOWEST_LOGP`), and an
    infinity for itself alone.

    Returns:
        Two float64 [65536], by the bits of the float16; NaN for NaN.
    """
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity minus infinity, which is not used
        lowest, highest = _rounded_down(halves), _rounded_up(halves)
    lowest[halves == np.finfo(np.float16).min] = -np.inf
    return lowest, highest


@cache
def ranges_of_logp(encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
    """As `ranges_of_halves`, for log-probabilities that were decoded from an encoding.

    `compact` rounds three times: the logp to float16, its square root to a code, and the decoded
    logp to float16.
    """
    if encoding is not Encoding.COMPACT:
        return ranges_of_halves()
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    logp = np.where(np.isfinite(halves) & (halves <= 0), halves, np.nan)
    half_step = 0.5 / SCALE
    largest_root = np.sqrt(-_rounded_down(logp)) + half_step
    least_root = np.sqrt(np.maximum(-_rounded_up(logp), 0)) - half_step
    lowest = _rounded_down(-(largest_root**2))
    lowest[halves <= restored_logp(np.array([_LOWEST]))[0]] = -np.inf
    return lowest, _rounded_up(-(np.maximum(least_root, 0) ** 2))


def _rounded_down(values: np.ndarray) -> np.ndarray:
    lower = values - np.abs(values) * _ROUNDING - _LEAST_ROUNDING
    return np.where(np.isinf(values), values, lower)


def _rounded_up(values: np.ndarray) -> np.ndarray:
    upper = values + np.abs(values) * _ROUNDING + _LEAST_ROUNDING
    return np.where(np.isinf(values), values, upper)


def decode_chunk(name: str, data: bytes, out: np.ndarray, encoding: Encoding) -> None:
    """Decode a chunk, without its checksum, into its values.

    Args:
        name: the array's name.
        data: the chunk's bytes.
        out: an array of one dimension, of the type that the array has in memory.
        encoding: the encoding of the cache.

    Raises:
        ValueError: the bytes are no such chunk.
    """
    if name in ("check", "source"):
        _copy_bytes(data, out)
    elif encoding is Encoding.PORTABLE:
        decode_zstd(data, out)
    elif encoding is Encoding.COMPACT and name == "logp":
        codes = np.empty(len(out), "<u2")
        decode_pcodec(data, codes)
        restored_logp(codes, out)
    else:
        decode_pcodec(data, out)


def _copy_bytes(data: bytes, out: np.ndarray) -> None:
    if len(data) != out.nbytes:
        raise ValueError(f"a chunk holds {len(data)} bytes, not {out.nbytes}")
    out[:] = np.frombuffer(data, out.dtype)
