"""A view: one deterministic augmentation of one image, as numbers only.

`sample_view` is a pure function of (policy, seed, image key, view number). Its randomness is one
`shake_128` digest, read as 64-bit little-endian words at fixed positions; everything after that is
integer arithmetic and committed tables, so no library or libm can ever change a view. A view knows
no image size: `teacher_cache.pixels.render` turns it into pixels at any size. docs/views.md has the
layout word by word, and what each distribution was taken from.

Q16 and Q32 are integers in units of 2^-16 and 2^-32; a word's uniform is its upper 32 bits, in Q32.
"""

import math
import os
from dataclasses import dataclass
from hashlib import shake_128
from struct import Struct
from typing import NamedTuple

from teacher_cache.views.policy import ONE_Q32, FixedPoint, ViewPolicy, fixed_point
from teacher_cache.views.quantiles import quantiles

# Positions of words in the digest. Words are never renumbered: a decision that is added later takes
# later words. A longer digest leaves the earlier words as they are, because SHAKE-128 is a stream.
FLIP_WORD = 0
ERASE_WORD = 1
NOISE_KEY_WORD = 2  # two words: 16 bytes, taken as they are
CROP_WORD = 4  # ten candidates of four words: area, ratio, x, y
OP_WORD = 44  # four operations of four words: which, applied, level, negate
ERASE_BOX_WORD = 60  # ten candidates of four words: area, ratio, top, left
SQUEEZED_WORDS = 100
# These words are reserved, and not computed until a policy reads them: AutoAugment's sub-policy and
# its two operations (100; 101-106: applied, level, negate each) and mixing (107-112: applied, Mixup
# or CutMix, partner, lambda, box top, box left).

# A uniform is the upper half of a little-endian word: `4x` skips the lower half.
_SWITCHES = Struct("<4xI4xI").unpack_from
_FOUR_WORDS = Struct("<4xI4xI4xI4xI")
_DIGEST_BYTES = 8 * SQUEEZED_WORDS
_NOISE_KEY = slice(8 * NOISE_KEY_WORD, 8 * CROP_WORD)
_CROPS = slice(8 * CROP_WORD, 8 * OP_WORD)
_ERASE_BOXES = slice(8 * ERASE_BOX_WORD, 8 * SQUEEZED_WORDS)

_HALF = 1 << 31
_TABLE_SHIFT = 32 - 12  # a Q32 uniform to an index into 4,096 quantiles

_MAX_LEVEL_Q16 = 10 << 16  # timm's `_LEVEL_DENOM`

# The operations that timm mirrors with probability 1/2; for all others `negate` is False.
_SIGNED = frozenset(
    (
        *("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
        *("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"),
    )
)

# timm's RandomErasing(min_area=0.02, max_area=1/3): the lowest area and the width of its range.
_ERASE_MIN_AREA_Q32 = round(ONE_Q32 * 0.02)
_ERASE_AREA_SPAN_Q32 = round(ONE_Q32 / 3) - _ERASE_MIN_AREA_Q32

Crop = tuple[int, int, int, int]
"""A crop candidate: (area, ratio, x, y). The area is a fraction of the image's, in Q32; the ratio
is width to height, in Q16; x and y place the corner, as fractions of the free room, in Q32."""


class Op(NamedTuple):
    """One RandAugment operation to apply."""

    name: str
    level: int
    """Magnitude on timm's scale of 0 to 10, in Q16."""
    negate: bool
    """Mirror the argument (rotate left, not right); False where the operation has no sign."""


class Box(NamedTuple):
    """A rectangle of the rendered square, without a unit; all four are Q32."""

    height: int
    """Fraction of the side, below 1."""
    width: int
    top: int
    """The corner's place as a fraction of the free room: 0 is the top, nearly 1 the bottom."""
    left: int


@dataclass(frozen=True, slots=True)
class View:
    """One augmentation of one image, without any number that depends on the image's size."""

    crops: tuple[Crop, ...]
    """Ten candidates; `render` takes the first that fits the image, or else the centre crop."""
    flip: bool
    ops: tuple[Op, ...]
    erase: Box | None
    noise_key: bytes
    """16 bytes from which `render` derives the noise in the erased box."""


def sample_view(policy: ViewPolicy, *, seed: int, key: str, view: int) -> View:
    """Draw view number `view` of the image `key`: the same for ever, on every machine.

    Args:
        policy: the distribution to draw from.
        seed: the recipe's seed, any integer.
        key: the image's relative POSIX path; `os.fsencode` turns it into bytes, so a file name
            that is not UTF-8 has its own views too.
        view: which of the image's views, from 0.

    Raises:
        ValueError: `view` is negative.
    """
    if view < 0:
        raise ValueError(f"views count from 0: got view {view} of image {key!r}")
    digest = _digest(seed, key, view)
    fixed = fixed_point(policy)
    flip, erase = _SWITCHES(digest)
    low, span, ratios = fixed.min_area, fixed.area_span, quantiles().crop_ratio
    return View(
        tuple(
            [  # a list, since a generator would take longer; this runs for every view and image
                (low + (area * span >> 32), ratios[ratio >> _TABLE_SHIFT], x, y)
                for area, ratio, x, y in _FOUR_WORDS.iter_unpack(digest[_CROPS])
            ]
        ),
        flip < fixed.flip,
        _sample_ops(fixed, digest) if fixed.num_ops else (),
        _sample_erase(digest) if erase < fixed.erase else None,
        digest[_NOISE_KEY],
    )


def _digest(seed: int, key: str, view: int) -> bytes:
    """Hash the domain tag and the three fields as netstrings (length, colon, bytes, comma).

    The length prefix keeps different fields from ever giving the same bytes.
    """
    seed_hex, name, view_hex = b"%x" % seed, os.fsencode(key), b"%x" % view
    return shake_128(
        b"13:retort/view/1,%d:%b,%d:%b,%d:%b,"
        % (len(seed_hex), seed_hex, len(name), name, len(view_hex), view_hex)
    ).digest(_DIGEST_BYTES)


def _sample_ops(fixed: FixedPoint, digest: bytes) -> tuple[Op, ...]:
    """RandAugment as timm has it: `num_ops` operations, drawn with replacement.

    Each is applied with the policy's probability. Its level is drawn from a Gaussian around the
    magnitude and clipped to 0..10 (timm's AugmentOp, mstd).
    """
    ops = []
    for slot in range(fixed.num_ops):
        which, applied, level, negate = _FOUR_WORDS.unpack_from(digest, 8 * (OP_WORD + 4 * slot))
        if applied >= fixed.op_probability:
            continue
        name = fixed.op_names[which * len(fixed.op_names) >> 32]
        normal = quantiles().standard_normal[level >> _TABLE_SHIFT]
        level_q16 = fixed.magnitude + (fixed.magnitude_std * normal + 0x8000 >> 16)
        clipped = min(max(level_q16, 0), _MAX_LEVEL_Q16)
        ops.append(Op(name, clipped, name in _SIGNED and negate < _HALF))
    return tuple(ops)


def _sample_erase(digest: bytes) -> Box | None:
    """RandomErasing as timm has it: the first of ten boxes that fits the unit square, or none.

    The height is sqrt(area * ratio) and the width sqrt(area / ratio). Unlike a crop's, this ratio
    is height to width.
    """
    ratios = quantiles().erase_ratio
    for area, ratio, top, left in _FOUR_WORDS.iter_unpack(digest[_ERASE_BOXES]):
        area_q32 = _ERASE_MIN_AREA_Q32 + (area * _ERASE_AREA_SPAN_Q32 >> 32)
        ratio_q16 = ratios[ratio >> _TABLE_SHIFT]
        # area * ratio is in Q48; with sixteen more bits its root is in Q32. So it is for the width.
        height = math.isqrt(area_q32 * ratio_q16 << 16)
        width = math.isqrt((area_q32 << 48) // ratio_q16)
        if height < ONE_Q32 and width < ONE_Q32:
            return Box(height, width, top, left)
    return None
