"""The distribution that views are drawn from, and the same in fixed point."""

from dataclasses import dataclass
from functools import cache

from pydantic import BaseModel, Field

RAND_AUGMENT_OPS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd"),
    *("Color", "Contrast", "Brightness", "Sharpness"),
    *("ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)
"""The fifteen operations of timm's `rand` set (`_RAND_TRANSFORMS`), in its order."""


# timm has a second form of these operations, whose severity grows with the level.
_INCREASING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")


RAND_AUGMENT_INCREASING_OPS = tuple(
    name + "Increasing" if name in _INCREASING else name for name in RAND_AUGMENT_OPS
)
"""The operations of timm's `-inc1` set, in the same order; their severity grows with the level."""


ONE_Q32 = 1 << 32


class ViewPolicy(BaseModel, frozen=True, extra="forbid"):
    """The distribution that views are drawn from; the defaults are the paper's pipeline.

    GhostNetV3 (arXiv 2404.11202) trains with timm's augmentations: RandomResizedCrop, flip,
    `rand-m9-mstd0.5` and random erasing with p = 0.2, without Mixup or CutMix.
    """

    min_area: float = Field(0.08, gt=0, le=1, allow_inf_nan=False)
    """Area of the smallest crop as a fraction of the image's: RandomResizedCrop's lower scale."""
    flip: float = Field(0.5, ge=0, le=1, allow_inf_nan=False)
    """Probability of a horizontal flip."""
    randaugment: bool = True
    """Whether RandAugment is applied; without it no operation is drawn, whatever `num_ops` says."""
    num_ops: int = Field(2, ge=0, le=4)
    """RandAugment operations drawn for a view, with replacement."""
    op_probability: float = Field(0.5, ge=0, le=1, allow_inf_nan=False)
    """Probability that a drawn operation is applied."""
    magnitude: float = Field(9.0, ge=0, le=10, allow_inf_nan=False)
    """Mean level of an operation, on timm's scale of 0 to 10."""
    magnitude_std: float = Field(0.5, ge=0, le=10, allow_inf_nan=False)
    """Standard deviation of the level around `magnitude`; levels are clipped to 0..10."""
    increasing: bool = False
    """Draw from timm's increasing set (`-inc1`)."""
    erase: float = Field(0.2, ge=0, le=1, allow_inf_nan=False)
    """Probability of random erasing."""


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """A ViewPolicy as integers, in Q32; `magnitude` and `magnitude_std` are in Q16."""

    min_area: int
    area_span: int
    flip: int
    erase: int
    num_ops: int
    op_probability: int
    magnitude: int
    magnitude_std: int
    op_names: tuple[str, ...]


@cache
def fixed_point(policy: ViewPolicy) -> FixedPoint:
    """Turn a policy into integers: Q32 for probabilities and areas, Q16 for levels.

    A float times a power of two is exact, so the only rounding is that of `round`: to nearest, ties
    to even.
    """
    min_area = round(policy.min_area * ONE_Q32)
    return FixedPoint(
        min_area=min_area,
        area_span=ONE_Q32 - min_area,
        flip=round(policy.flip * ONE_Q32),
        erase=round(policy.erase * ONE_Q32),
        num_ops=policy.num_ops if policy.randaugment else 0,
        op_probability=round(policy.op_probability * ONE_Q32),
        magnitude=round(policy.magnitude * 65536),
        magnitude_std=round(policy.magnitude_std * 65536),
        op_names=RAND_AUGMENT_INCREASING_OPS if policy.increasing else RAND_AUGMENT_OPS,
    )
