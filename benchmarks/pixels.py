"""One core, encoded JPEG -> augmented uint8 pixels at 224 px: Retort's views against the peers'.

The peers are timm's own training transform and torchvision's v2 transforms on the same images with
the same augmentations (student/speed/peers.py says how they are set). Without the compiled engine
Pillow makes the same pixels: a third line. Contestants take turns; medians.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import torch

from benchmarks.machine import describe, interleaved
from student.speed.peers import timm_pipeline, torchvision_pipeline
from teacher_cache.images.index import index_images
from teacher_cache.pixels.engine import PILLOW, Engine
from teacher_cache.pixels.ops import apply_op
from teacher_cache.pixels.render import Picture, decode_image, render
from teacher_cache.pixels.resize import Pixels, resize_crop
from teacher_cache.pixels.selftest import proved_engine
from teacher_cache.views.geometry import erase_box
from teacher_cache.views.noise import noise_pixels
from teacher_cache.views.policy import ViewPolicy
from teacher_cache.views.view import View, sample_view

IMAGES, SIZE, REPEATS = 60, 224, 15


class Sample:
    """Encoded images, and the views of them that come next."""

    def __init__(self) -> None:
        index = index_images(Path(os.environ["RETORT_DATA"]) / "imagenet-sample")
        self.keys = index.keys[:IMAGES]
        self.encoded = [index.read(row) for row in range(IMAGES)]
        self.policy, self.numbers = ViewPolicy(), iter(range(10**9))

    def views(self) -> list[View]:
        number = next(self.numbers)
        return [sample_view(self.policy, seed=0, key=key, view=number) for key in self.keys]

    def render_one(self, data: bytes, view: View, engine: Engine) -> Pixels:
        picture = decode_image(data, views=[view], engine=engine)
        return render(picture, view, size=SIZE, engine=engine)

    def render(self, engine: Engine) -> None:
        for data, view in zip(self.encoded, self.views(), strict=True):
            self.render_one(data, view, engine)

    def through(self, pipeline: Callable[[bytes], object]) -> None:
        number = next(self.numbers)
        random.seed(number)
        torch.manual_seed(number)
        for data in self.encoded:
            pipeline(data)


class Stages:
    """Each stage of `Sample.render` alone, on what the stages before it gave for four views."""

    def __init__(self, sample: Sample) -> None:
        self.sample, self.engine = sample, proved_engine()
        self.encoded = sample.encoded * 4
        self.views = [view for _ in range(4) for view in sample.views()]
        self.pictures = [self.picture(data, view) for data, view in self.pairs(self.encoded)]
        self.squares = [render(p, view, size=SIZE) for p, view in self.pairs(self.pictures)]

    def pairs(self, things: list) -> list:
        return list(zip(things, self.views, strict=True))

    def picture(self, data: bytes, view: View) -> Picture:
        return decode_image(data, views=[view])

    def sampling(self) -> None:
        for _ in range(4):
            self.sample.views()

    def checksum(self) -> None:
        for data in self.encoded:
            google_crc32c.value(data)

    def decode(self) -> None:
        for data, view in self.pairs(self.encoded):
            self.picture(data, view)

    def resize(self) -> None:
        for (picture, view), out in zip(self.pairs(self.pictures), self.squares, strict=True):
            box, how = picture.box_of(view), {"interpolation": "bicubic", "flip": view.flip}
            resize_crop(picture.pixels, box, out, engine=self.engine, **how)

    def ops(self) -> None:
        for out, view in self.pairs(self.squares):
            for op in view.ops:
                apply_op(out, op, engine=self.engine)

    def erase(self) -> None:
        for out, view in self.pairs(self.squares):
            if view.erase is not None:
                left, top, right, bottom = erase_box(view.erase, SIZE)
                noise = noise_pixels(view.noise_key, bottom - top, right - left)
                out[top:bottom, left:right] = noise


def main() -> None:
    torch.set_num_threads(1)
    sample = Sample()
    timms, torchvisions = timm_pipeline(SIZE), torchvision_pipeline(SIZE)
    engine = proved_engine()
    seconds = interleaved(
        {
            "timm": lambda: sample.through(timms),
            "torchvision": lambda: sample.through(torchvisions),
            "retort, pillow": lambda: sample.render(PILLOW),
            f"retort, {engine}": lambda: sample.render(engine),
        },
        repeats=REPEATS,
    )
    *_, ours = seconds
    print(f"pixels: {IMAGES} real JPEGs to {SIZE} px, one core")
    for name, value in seconds.items():
        print(
            f"  {name:18} {IMAGES / value:7.0f} images/s  {1000 * value / IMAGES:6.3f} ms an image"
        )
    print(f"  ratio_to_timm {seconds['timm'] / seconds[ours]:.2f}")
    print(f"  ratio_to_torchvision {seconds['torchvision'] / seconds[ours]:.2f}")
    alone = Stages(sample)
    names = ("sampling", "checksum", "decode", "resize", "ops", "erase")
    parts = interleaved({name: getattr(alone, name) for name in names}, repeats=REPEATS)
    for name, value in parts.items():
        print(f"  {name:18} {1e6 * value / IMAGES / 4:7.1f} us an image")
    share = parts["checksum"] / 4 / seconds[ours]
    print(f"  the images' CRC-32C, of a render: {100 * share:.2f}%")


if __name__ == "__main__":
    print(describe())
    main()
