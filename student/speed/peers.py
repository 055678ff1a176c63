"""The installed peers' training pipelines, encoded bytes -> augmented uint8 pixels, to race.

Both are set to the work that a view asks for: bicubic antialiased crop, flip, two RandAugment
operations at p = 0.5 each, the affine ones bilinear. They draw from their libraries' own random
streams, so their pixels are no view's. timm erases on the device, after normalising; so its
pipeline does without, and a view's erasing is work that timm's figure does not hold.
"""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode, v2

from teacher_cache.pixels.ops import FILL

Pipeline = Callable[[bytes], np.ndarray]
"""Encoded bytes -> uint8 pixels [3, size, size]."""


def timm_pipeline(size: int) -> Pipeline:
    """Return timm's own training transform, `rand-m9-mstd0.5`, as its prefetching loader has it.

    Any format that Pillow opens. The affine operations are bilinear, as a view's are; timm's own
    choice here is bicubic, which takes twice as long.
    """
    transform = create_transform(
        size, is_training=True, auto_augment="rand-m9-mstd0.5", interpolation="bicubic",
        use_prefetcher=True,
    )  # fmt: skip
    for step in transform.transforms:
        for op in getattr(step, "ops", ()):
            op.kwargs["resample"] = Image.Resampling.BILINEAR
            if op.name.startswith("Posterize"):
                op.aug_fn = _posterize
    return lambda data: transform(Image.open(io.BytesIO(data)).convert("RGB"))


def _posterize(image: Image.Image, bits: int, **arguments: object) -> Image.Image:
    """Call timm's with at least 1 bit: timm asks for 0 at times, an error since Pillow 13."""
    posterized: Image.Image = auto_augment.posterize(image, max(1, bits), **arguments)
    return posterized


def torchvision_pipeline(size: int) -> Pipeline:
    """Return torchvision's v2 transforms on uint8 tensors; JPEGs only.

    Its RandAugment applies every operation it draws, so one of one operation stands, twice, behind
    a coin. Erasing fills with black, the cheapest there is.
    """
    one = v2.RandAugment(num_ops=1, interpolation=InterpolationMode.BILINEAR, fill=list(FILL))
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            *(v2.RandomApply([one], p=0.5) for _ in range(2)),
            v2.RandomErasing(p=0.2, value=0),
        ]
    )

    def render(data: bytes) -> np.ndarray:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels: np.ndarray = transform(decode_jpeg(encoded, mode=ImageReadMode.RGB)).numpy()
        return pixels

    return render
