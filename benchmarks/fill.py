"""Where a fill's time goes: BEiTv2-B on a core, one worker that renders, a thread that writes.

    RETORT_DATA=DIR python -m benchmarks.fill [IMAGES [MODEL]]        (48: about a minute)

Random weights, two views of real ImageNet JPEGs, tiles of 16 rows. The parts are timed alone, too:
a pipeline takes as long as its slowest part, not as all of them.
"""

import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import describe
from teacher_cache.cache.blocks import Block, write_block
from teacher_cache.cache.cache import Cache, create_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.filling.fill import fill
from teacher_cache.filling.opening import open_or_create
from teacher_cache.images.index import ImageIndex, index_images
from teacher_cache.loading.loader import LoaderSettings, rendered
from teacher_cache.loading.renderers import Request, ViewRenderer
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.recipes.document import parse_recipe
from teacher_cache.storage.disk import Disk
from teacher_cache.teacher.answers import TopK
from teacher_cache.teacher.networks import Teacher, load_teacher

BATCH = 16
CLASSES = 1_000


@dataclass(frozen=True, eq=False)
class TimedTeacher(Teacher):
    """A teacher that notes how long it was at work."""

    seconds: list[float]

    def logits(self, pixels_BHWC: Tensor) -> Tensor:
        started = time.perf_counter()
        logits = Teacher.logits(self, pixels_BHWC)
        self.seconds.append(time.perf_counter() - started)
        return logits


def recipe_of(model: str) -> CacheRecipe:
    document = {
        "teacher": {"model": model, "pretrained": False, "batch_size": BATCH},
        "views": {"count": 2},
        "topk": {"k": 10},
        "storage": {"rows_per_shard": 32, "views_per_tile": 2},
        "loader": {"workers": 1},
    }
    return parse_recipe(document, CacheRecipe, source="benchmark")


def part_of(index: ImageIndex, images: int) -> ImageIndex:
    """The first images, under ImageNet's thousand classes."""
    names = {f"n{label:08}": label for label in range(CLASSES)}
    return replace(index.take(np.arange(images)), class_ids=names)


def rendering_s(index: ImageIndex, recipe: CacheRecipe) -> float:
    """One worker alone, over all tiles."""
    views = recipe.views
    renderer = ViewRenderer.of(index, views)
    rows = torch.arange(len(index)).split(BATCH)
    started = time.perf_counter()
    requests = [Request(part.numpy(), (0, 1)) for part in rows]
    for _ in rendered(renderer, requests, LoaderSettings(1), largest=(2, len(rows[0]))):
        pass
    return time.perf_counter() - started


def writing_s(cache: Cache, folder: Path) -> float:
    """Encode and commit the same records once more, in a cache of their own."""
    copy = create_cache(Disk(folder / "copy"), cache.manifest, cache.index)
    for shard in range(cache.layout.shards):
        source = cache.sources.of(shard)
        copy.sources.commit(shard, source.crc, source.absent_rows, {})
    blocks = []
    for view in range(cache.view_count):
        slab = read_slab(cache, view)
        for block in (b for b in cache.blocks() if b.view == view):
            rows = slice(cache.rows(block.shard).start, cache.rows(block.shard).stop)
            topk = TopK(slab.ids_NK[rows], slab.logp_NK[rows], slab.tail_NT[rows])
            blocks.append(Block(block, topk, slab.check[rows.start // 32 : -(-rows.stop // 32)]))
    started = time.perf_counter()
    for made in blocks:
        write_block(copy, made, {})
    return time.perf_counter() - started


def main(images: int = 48, model: str = "beitv2_base_patch16_224") -> None:
    torch.set_num_threads(1)
    index = part_of(index_images(Path(os.environ["RETORT_DATA"]) / "imagenet-sample"), images)
    recipe = recipe_of(model)
    plain = load_teacher(
        recipe.teacher, class_count=CLASSES, has_class_map=False, size=recipe.views.size,
        device=torch.device("cpu"),
    )  # fmt: skip
    teacher = TimedTeacher(
        plain.members, plain.class_count, plain.weights_sha256, plain.device, seconds=[]
    )
    with TemporaryDirectory(prefix="retort-fill-") as name:
        cache = open_or_create(Disk(Path(name) / "cache"), recipe, index, teacher)
        started = time.perf_counter()
        for _ in fill(cache, index, teacher, recipe):
            pass
        wall_s = time.perf_counter() - started
        write_s = writing_s(cache, Path(name))
    render_s = rendering_s(index, recipe)
    teacher_s = sum(teacher.seconds)
    records = 2 * images
    print(f"{model}: {records} records in {wall_s:.1f} s, {records / wall_s:.2f} a second")
    print(f"  the teacher at work        {teacher_s:7.2f} s  {100 * teacher_s / wall_s:5.1f}%")
    left_s = wall_s - teacher_s
    print(f"  everything else            {left_s:7.2f} s  {100 * left_s / wall_s:5.1f}%")
    print("  alone, which the pipeline hides behind the teacher:")
    print(f"    one worker's pixels      {render_s:7.2f} s  {100 * render_s / wall_s:5.1f}%")
    print(f"    encode + commit          {write_s:7.2f} s  {100 * write_s / wall_s:5.1f}%")


if __name__ == "__main__":
    print(describe())
    main(*(kind(text) for kind, text in zip((int, str), sys.argv[1:], strict=False)))
