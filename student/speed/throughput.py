"""How fast this machine turns a folder's images into views: by workers, by stage, against peers.

Peers are the installed timm and torchvision (student/speed/peers.py), on the same images, in turns,
so that a busy moment hits all of them.

B images, G views.
"""

import itertools
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from student.speed.peers import timm_pipeline, torchvision_pipeline
from student.speed.stage_times import ROUNDS, stages, turns
from teacher_cache.errors import UserError
from teacher_cache.images.index import ImageIndex, ImagesError
from teacher_cache.loading.loader import LoaderSettings, rendered
from teacher_cache.loading.renderers import Marks, Renderer, Request, ViewRenderer
from teacher_cache.pixels.render import PIXEL_ENGINE, UnreadableImage, decode_image, render
from teacher_cache.views.view import sample_view

SAMPLE = 64
"""Images measured, evenly spread over the folder."""
BATCH = 64


@dataclass(frozen=True, slots=True)
class Race:
    """One core, encoded bytes -> pixels: medians over turns."""

    images_per_s: Mapping[str, float]
    """By contestant: retort, timm, torchvision (where it reads the images)."""
    ratios: Mapping[str, float]
    """By peer: how many times as fast as it Retort is."""


def throughput(renderer: ViewRenderer, *, workers: Sequence[int], seconds: float) -> dict[str, Any]:
    """Measure everything; each figure takes about `seconds`.

    Args:
        renderer: views, size and images; a sample of the images is used.
        workers: counts of loader processes to try; 0 is the reader's own process.
        seconds: how long to measure each count, the race and the stages.

    Returns:
        `images_per_s` by worker count, `images_per_s_one_core` by contestant, `ratio_to_timm`,
        `ratio_to_torchvision` (None where torchvision's pipeline does not read the images),
        `stages` in microseconds an image, and what they belong to.

    Raises:
        ImagesError: none of the sampled images can be read.
    """
    sampled = replace(renderer, index=_sample(renderer.index))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            # torchvision 0.29's decoder, which its pipeline is measured with, announces its end
            warnings.filterwarnings("ignore", "The image decoding and encoding", DeprecationWarning)
            race = _race(sampled, seconds)
        spent = stages(sampled, seconds)
    finally:
        torch.set_num_threads(threads)
    rows = len(sampled.index)
    by_workers = images_per_s(sampled, workers, seconds=seconds, rows=rows)
    spent["transport"] = 1e6 / images_per_s(_Blank(sampled.size), [1], seconds=seconds)[1]
    return {
        "images_per_s": {str(count): round(rate, 1) for count, rate in by_workers.items()},
        "images_per_s_one_core": {n: round(rate, 1) for n, rate in race.images_per_s.items()},
        "ratio_to_timm": round(race.ratios["timm"], 3),
        "ratio_to_torchvision": (
            round(race.ratios["torchvision"], 3) if "torchvision" in race.ratios else None
        ),
        "stages": {name: round(value, 1) for name, value in spent.items()},
        "images": len(renderer.index),
        "sample": len(sampled.index),
        "size": renderer.size,
        "cores": os.cpu_count(),
        "pixel_engine": PIXEL_ENGINE,
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm", "pillow")},
    }


def images_per_s(
    renderer: Renderer, workers: Sequence[int], *, seconds: float, rows: int = SAMPLE
) -> dict[int, float]:
    """Batches of 64 through the loader, by worker count, counts taking turns.

    The reader only looks at the batches. `rows` is how many the renderer has.
    """
    rates: dict[int, list[float]] = {count: [] for count in workers}
    for _ in range(ROUNDS):
        for count, found in rates.items():
            found.append(_rate(renderer, count, rows, seconds / ROUNDS))
    return {count: statistics.median(found) for count, found in rates.items()}


def workers_needed(by_workers: Mapping[int, float], wanted_per_s: float) -> int:
    """The fewest workers that give so many images a second; beyond what was measured, more alike.

    Args:
        by_workers: images a second by worker count, measured.
        wanted_per_s: what the student takes.
    """
    counts = sorted(count for count in by_workers if count > 0)
    if not counts:
        raise UserError("no count of workers was measured: pass --workers with 1 or more")
    for count in counts:
        if by_workers[count] >= wanted_per_s:
            return count
    most = counts[-1]
    return math.ceil(wanted_per_s / (by_workers[most] / most))


def with_student(
    facts: Mapping[str, Any], name: str, device: str, wanted_per_s: float
) -> dict[str, Any]:
    """Add what a student's step takes, and how many workers give it that."""
    measured = {int(count): rate for count, rate in facts["images_per_s"].items()}
    needed = workers_needed(measured, wanted_per_s)
    student = {
        "model": name,
        "device": device,
        "images_per_s": round(wanted_per_s, 1),
        "workers": needed,
        "measured": needed <= max(measured),
    }
    return {**facts, "student": student}


def table(facts: Mapping[str, Any]) -> str:
    """The facts as lines for a terminal."""
    one_core = facts["images_per_s_one_core"]
    lines = [
        f"{facts['sample']} of {facts['images']:,} images to {facts['size']} px, "
        f"{facts['cores']} cores, {facts['pixel_engine']}",
        "",
        "workers   images/s",
        *(f"{count:>7}  {rate:9,.1f}" for count, rate in facts["images_per_s"].items()),
        "",
        "one core       images/s  retort to it",
        f"  retort      {one_core['retort']:9,.1f}",
    ]
    for peer in ("timm", "torchvision"):
        name = f"  {peer.ljust(11)} {one_core.get(peer, math.nan):9,.1f}"
        ratio = facts[f"ratio_to_{peer}"]
        lines.append(f"{name}  {ratio:12.2f}" if ratio else f"  {peer} reads JPEGs only")
    lines += ["", "stage          us an image"]
    lines += [f"  {name.ljust(11)} {value:9,.1f}" for name, value in facts["stages"].items()]
    if student := facts.get("student"):
        count = f"{student['workers']} worker{'s' if student['workers'] > 1 else ''}"
        if not student["measured"]:
            count = f"about {count} (more than were measured)"
        lines += [
            "",
            f"{student['model']} on {student['device']} takes {student['images_per_s']:,.1f} "
            f"images/s: {count} on cores of their own",
        ]
    return "\n".join(lines)


def _sample(index: ImageIndex) -> ImageIndex:
    """Readable images, evenly spread, as an index of their own."""
    rows = np.unique(np.linspace(0, len(index) - 1, min(SAMPLE, len(index))).astype(np.int64))
    readable = [row for row in rows.tolist() if _is_readable(index, row)]
    if not readable:
        raise ImagesError(f"{index.root}: none of {len(rows)} sampled images can be read")
    return index.take(np.array(readable, np.int64))


def _is_readable(index: ImageIndex, row: int) -> bool:
    try:
        decode_image(index.read(row))
    except (UnreadableImage, OSError):
        return False
    return True


def _rate(renderer: Renderer, workers: int, rows: int, seconds: float) -> float:
    requests = (
        Request(np.arange(BATCH) % rows, (number,)) for number in itertools.count()
    )  # each batch another view of the same images
    largest = (1, BATCH)
    with rendered(renderer, requests, LoaderSettings(workers), largest=largest) as loader:
        for _ in range(1 + workers):  # the workers have started and are rendering
            next(loader)
        started, images = time.perf_counter(), 0
        while time.perf_counter() - started < seconds or not images:
            images += len(next(loader).request.rows)
        return images / (time.perf_counter() - started)


def _race(renderer: ViewRenderer, seconds: float) -> Race:
    encoded = [renderer.index.read(row) for row in range(len(renderer.index))]
    keys, numbers = renderer.index.keys, itertools.count()

    def ours(data: bytes) -> object:
        number = next(numbers)
        view = sample_view(
            renderer.policy, seed=renderer.seed, key=keys[number % len(keys)], view=number
        )
        picture = decode_image(data, views=[view])
        return render(picture, view, size=renderer.size, interpolation=renderer.interpolation)

    contestants: dict[str, Callable[[bytes], object]] = {
        "retort": ours,
        "timm": timm_pipeline(renderer.size),
    }
    if all(data.startswith(b"\xff\xd8\xff") for data in encoded):
        contestants["torchvision"] = torchvision_pipeline(renderer.size)
    laps: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in turns(seconds):
        spent = dict.fromkeys(contestants, 0.0)
        for first in range(0, len(encoded), 8):
            for name, run in contestants.items():
                started = time.perf_counter()
                for data in encoded[first : first + 8]:
                    run(data)
                spent[name] += time.perf_counter() - started
        for name, value in spent.items():
            laps[name].append(value)
    return Race(
        {name: len(encoded) / statistics.median(found) for name, found in laps.items()},
        {
            name: statistics.median(
                theirs / own for theirs, own in zip(laps[name], laps["retort"], strict=True)
            )
            for name in contestants
            if name != "retort"
        },
    )


@dataclass(frozen=True, slots=True)
class _Blank:
    """A renderer that renders nothing, to time the way from worker to reader alone."""

    size: int

    def shape(self, views: int, rows: int) -> tuple[int, int, int, int, int]:
        return views, rows, self.size, self.size, 3

    def render_into(self, request: Request, pixels_GBHWC: np.ndarray) -> Marks:
        return Marks({}, {}, {})

    def name_of(self, row: int) -> str:
        return str(row)
