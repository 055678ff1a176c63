"""One core, encoded JPEG -> augmented uint8 pixels at 224 px: Retort's views against timm's.

The peer is timm's own training transform (RandomResizedCrop, flip, rand-m9-mstd0.5, random
erasing) on the same images, to uint8.
"""

import io
import os
import random
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import auto_augment, create_transform

from benchmarks.machine import describe, interleaved, print_ratios
from teacher_cache.images import index_images
from teacher_cache.render import decode_image, render
from teacher_cache.views import ViewPolicy, sample_view

IMAGES = 60


def main() -> None:
    # Pillow 13 refuses the 0 bits that timm's posterize may ask for
    auto_augment.LEVEL_TO_ARG["Posterize"] = lambda level, hparams: (
        max(1, auto_augment._posterize_level_to_arg(level, hparams)[0]),
    )
    index = index_images(Path(os.environ["RETORT_DATA"]) / "imagenet-sample")
    encoded = [index.read(row) for row in range(IMAGES)]
    policy, view = ViewPolicy(), iter(range(10**9))
    timms = create_transform(
        224, is_training=True, auto_augment="rand-m9-mstd0.5", interpolation="bicubic",
        re_prob=0.2, re_mode="pixel", use_prefetcher=True,
    )  # fmt: skip

    def ours() -> None:
        number = next(view)
        for row, data in enumerate(encoded):
            chosen = sample_view(policy, seed=0, key=index.keys[row], view=number)
            render(decode_image(data), chosen, size=224)

    def theirs() -> None:
        random.seed(next(view))
        for data in encoded:
            np.asarray(timms(Image.open(io.BytesIO(data)).convert("RGB")))

    def decoding() -> None:
        for data in encoded:
            decode_image(data)

    print(f"pixels: {IMAGES} real JPEGs to 224 px, one core")
    print_ratios(
        interleaved({"timm": theirs, "retort": ours, "decoding alone": decoding}, repeats=9),
        to="timm",
    )


if __name__ == "__main__":
    print(describe())
    main()
