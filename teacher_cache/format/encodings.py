"""How records are encoded: what a shard's chunks hold, and back. A reader learns it of the cache.

    code = round(SCALE sqrt(-logp))        logp = -(code / SCALE)^2          (compact)

An error e of logp, sampled with p, costs 1/2 sum p e^2 nats. The step of the square root is
1 / SCALE, so e is uniform over 2 sqrt(-logp) / SCALE, and the cost is H / (6 SCALE^2) for the
kept classes' entropy H: the same accuracy where it counts and, beyond, fewer bits.
"""

from functools import cache

import numpy as np

from teacher_cache.format.bounded_codecs import decode_pcodec, decode_zstd
from teacher_cache.record import Encoding

SCALE = 320
"""Codes to the square root of a nat: 10 bits reach -10.2, 16 bits -41,940, where they stop."""
NO_CODE = 65535
"""The code of a record that is not there: NaN."""
_LOWEST = NO_CODE - 1


def kl_cost(encoding: Encoding, k: int) -> float:
    """The most that an encoding costs a teacher's answer on average, in nats of KL.

    The kept classes' entropy is at its highest, log k, where all of them are alike.
    """
    return float(np.log(k)) / (6 * SCALE**2) if encoding is Encoding.COMPACT else 0.0


def stored_logp(logp: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Log-probabilities, float16, as their array holds them: uint16 codes where compact."""
    if encoding is not Encoding.COMPACT:
        return logp
    absent = np.isnan(logp)
    root = np.sqrt(np.where(absent, 0.0, -logp.astype(np.float64)))
    codes = np.minimum(np.rint(SCALE * root), _LOWEST)
    return np.where(absent, NO_CODE, codes).astype(np.uint16)


def restored_logp(codes: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The float16 log-probabilities of codes: correctly rounded, NaN for `NO_CODE`."""
    found: np.ndarray = np.take(_logp_of_codes(), codes, out=out, mode="clip")
    return found


@cache
def _logp_of_codes() -> np.ndarray:
    logp = -((np.arange(NO_CODE + 1) / SCALE) ** 2)
    logp[NO_CODE] = np.nan
    return logp.astype(np.float16)


_ROUNDING = 2.0**-11 * (1 + 2.0**-10)
_LEAST_ROUNDING = 2.0**-24
"""How far float16 rounds, at most: half a step, relative or (near zero) absolute. Both are a little
more than that, which float64 arithmetic with up to 10^7 classes does not use up."""


@cache
def ranges_of_halves() -> tuple[np.ndarray, np.ndarray]:
    """Between which numbers lies what a stored float16 stands for: lowest, highest, by its bits.

    The lowest finite number also stands for everything below it (`topk.LOWEST_LOGP`); an infinity
    is exact. float64 [65536] each; NaN for NaN.
    """
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    with np.errstate(invalid="ignore"):  # of infinities
        lowest, highest = _rounded_down(halves), _rounded_up(halves)
    lowest[halves == np.finfo(np.float16).min] = -np.inf
    return lowest, highest


@cache
def ranges_of_logp(encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
    """The same of a log-probability that was read from an encoding.

    `compact` rounds its square root to a step, between two roundings to float16.
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
    """Decode a chunk, without its checksum, into its values: one dimension, of the slab's type.

    Raises:
        ValueError: bytes that are no such chunk.
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
