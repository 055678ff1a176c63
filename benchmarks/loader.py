"""The loader: 2 workers to 1, 8 views a decode to 1, and what the way to the reader costs.

    RETORT_DATA=DIR python -m benchmarks.loader

The first two need as many free cores as they have workers: on a busy machine they say little. The
way's peers are torch's DataLoader with its default collation, uint8 and normalised float32.
"""

import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import describe
from teacher_cache.images.index import index_images
from teacher_cache.loading.loader import LoaderSettings, rendered
from teacher_cache.loading.renderers import Marks, Request, ViewRenderer
from teacher_cache.views.policy import ViewPolicy

SIZE, BATCH, REPEATS = 224, 64, 7
SECONDS = 3.0
"""Of each turn."""


def main() -> None:
    index = index_images(Path(os.environ["RETORT_DATA"]) / "imagenet-sample")
    rows = np.arange(len(index))
    renderer = ViewRenderer(index, ViewPolicy(), 0, SIZE, "bicubic", check_size=SIZE)
    print(f"loader: {len(rows)} real JPEGs to {SIZE} px, medians of {REPEATS} turns")
    workers = in_turns({f"{n} worker{'s' * (n > 1)}": (renderer, rows, 1, n) for n in (1, 2)})
    show(workers, "images/s", "2 workers", "1 worker")
    views = in_turns({f"G = {g}": (renderer, rows, g, 1) for g in (1, 8)})
    show(views, "images x views/s", "G = 8", "G = 1")
    transport()


def in_turns(contestants: dict[str, tuple[ViewRenderer, np.ndarray, int, int]]) -> dict:
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(REPEATS):
        for name, (renderer, rows, views, workers) in contestants.items():
            rates[name].append(rate(renderer, rows, views, workers, turn))
    return rates


def rate(renderer: ViewRenderer, rows: np.ndarray, views: int, workers: int, turn: int) -> float:
    """Images x views a second, between the first batch and the last."""
    random = np.random.default_rng(turn)
    requests = (
        Request(random.permutation(rows)[: BATCH // views], tuple(range(first, first + views)))
        for first in range(0, 10**9, views)
    )
    settings = LoaderSettings(workers)
    with rendered(renderer, requests, settings, largest=(views, BATCH // views)) as loader:
        for _ in range(workers + 1):
            next(loader)
        started, images = time.perf_counter(), 0
        while time.perf_counter() - started < SECONDS:
            images += next(loader).pixels_GBHWC.shape[:2].numel()
        return images / (time.perf_counter() - started)


def show(rates: dict[str, list[float]], unit: str, better: str, base: str) -> None:
    for name, found in rates.items():
        print(f"  {name.ljust(10)} {statistics.median(found):9.1f} {unit}")
    ratios = [a / b for a, b in zip(rates[better], rates[base], strict=True)]
    print(f"  {better} to {base}: {statistics.median(ratios):.2f}")


class Noise(Dataset):
    """Pixels that cost nothing to make: one picture, again and again."""

    def __init__(self, dtype: torch.dtype) -> None:
        picture = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        self.picture = torch.from_numpy(picture).to(dtype)

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.picture.clone()


class Copied:
    """The same as a renderer."""

    def __init__(self) -> None:
        self.picture = Noise(torch.uint8).picture.numpy()

    def shape(self, views: int, rows: int) -> tuple[int, int, int, int, int]:
        return views, rows, SIZE, SIZE, 3

    def render_into(self, request: Request, pixels_GBHWC: np.ndarray) -> Marks:
        pixels_GBHWC[:] = self.picture
        return Marks({}, {})

    def name_of(self, row: int) -> str:
        return str(row)


def transport() -> None:
    def ours() -> object:
        requests = (Request(np.arange(BATCH), (0,)) for _ in range(10**9))
        return rendered(Copied(), requests, LoaderSettings(1), largest=(1, BATCH))

    def peer(dtype: torch.dtype) -> object:
        return iter(DataLoader(Noise(dtype), batch_size=BATCH, num_workers=1))

    contestants = {
        "retort": ours,
        "DataLoader, uint8": lambda: peer(torch.uint8),
        "DataLoader, float32": lambda: peer(torch.float32),
    }
    microseconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(REPEATS):
        for name, make in contestants.items():
            batches = make()
            for _ in range(12):  # places are warm
                next(batches)
            started = time.perf_counter()
            for _ in range(20):
                next(batches)
            microseconds[name].append((time.perf_counter() - started) / 20 / BATCH * 1e6)
            del batches
    print(f"  an image of {SIZE} px from worker to reader, batches of {BATCH}, 1 worker:")
    for name, found in microseconds.items():
        print(f"    {name.ljust(20)} {statistics.median(found):8.1f} us")


if __name__ == "__main__":
    print(describe())
    main()
