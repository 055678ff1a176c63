"""Pixels in bulk: rows x views rendered in worker processes, in the order asked for.

G views, B rows.
"""

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from teacher_cache.arrays import ROWS_PER_CHECK
from teacher_cache.images import ImageIndex
from teacher_cache.render import (
    Picture,
    UnreadableImage,
    decode_image,
    pixel_crc,
    render,
    render_center,
)
from teacher_cache.views import View, ViewPolicy, sample_view


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Which pixels to render: every row under every view."""

    rows: np.ndarray
    """int64 [B] rows of the index."""
    views: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Rendered:
    """The pixels of one request."""

    request: Request
    pixels_GBHWC: Tensor
    """uint8; zeros where the image is unreadable."""
    checks: dict[tuple[int, int], int]
    """(view, row) -> CRC-32 of the pixels at the cache's size, for the rows that are checked."""
    unreadable: dict[int, str]
    """Row -> why its image could not be read."""


class Renderer(Protocol):
    """Whatever turns a request into pixels; it runs in the workers, so it is picklable."""

    def __call__(self, request: Request) -> Rendered:
        """Render one request."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ViewRenderer:
    """Seeded views of training images."""

    index: ImageIndex
    policy: ViewPolicy
    seed: int
    size: int
    interpolation: str
    check_size: int
    """The size at which checked rows' pixels are summed: the cache's."""

    def __call__(self, request: Request) -> Rendered:
        """Decode each image once, render it under every view, sum the checked ones."""
        pixels = _black(len(request.views), len(request.rows), self.size)
        checks: dict[tuple[int, int], int] = {}
        unreadable: dict[int, str] = {}
        for b, row in enumerate(request.rows.tolist()):
            views = [self._view(row, number) for number in request.views]
            picture = _decoded(self.index, row, unreadable, views)
            if picture is None:
                continue
            for g, (number, view) in enumerate(zip(request.views, views, strict=True)):
                self._render(picture, view, self.size, pixels[g, b].numpy())
                if row % ROWS_PER_CHECK == number % ROWS_PER_CHECK:
                    checks[number, row] = pixel_crc(self._render(picture, view, self.check_size))
        return Rendered(request, pixels, checks, unreadable)

    def _view(self, row: int, number: int) -> View:
        return sample_view(self.policy, seed=self.seed, key=self.index.keys[row], view=number)

    def _render(
        self, picture: Picture, view: View, size: int, out: np.ndarray | None = None
    ) -> np.ndarray:
        return render(picture, view, size=size, interpolation=self.interpolation, out=out)


@dataclass(frozen=True, slots=True, eq=False)
class CenterRenderer:
    """The one centre crop of evaluation images; a request's views are ignored."""

    index: ImageIndex
    size: int
    crop_ratio: float
    interpolation: str

    def __call__(self, request: Request) -> Rendered:
        """Decode and crop each image."""
        pixels = _black(1, len(request.rows), self.size)
        unreadable: dict[int, str] = {}
        for b, row in enumerate(request.rows.tolist()):
            picture = _decoded(self.index, row, unreadable)
            if picture is None:
                continue
            render_center(
                picture,
                size=self.size,
                crop_ratio=self.crop_ratio,
                interpolation=self.interpolation,
                out=pixels[0, b].numpy(),
            )
        return Rendered(request, pixels, {}, unreadable)


def rendered(
    renderer: Renderer, requests: Iterable[Request], *, workers: int
) -> Iterator[Rendered]:
    """Render requests in order, ahead of the reader, in `workers` processes (0: in this one)."""
    loader: DataLoader[Rendered] = DataLoader(
        _Requests(renderer),
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        worker_init_fn=_leave_interrupts_to_the_parent,
    )
    return iter(loader)


class _Requests(Dataset[Rendered]):
    """The adapter that DataLoader wants: its sampler yields requests, this renders one."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer

    def __getitem__(self, request: Request) -> Rendered:
        return self.renderer(request)


def _leave_interrupts_to_the_parent(_worker: int) -> None:
    # Ctrl-C reaches the whole process group; the parent finishes its step, so workers must go on
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _black(views: int, rows: int, size: int) -> Tensor:
    return torch.zeros((views, rows, size, size, 3), dtype=torch.uint8)


def _decoded(
    index: ImageIndex, row: int, unreadable: dict[int, str], views: list[View] | None = None
) -> Picture | None:
    """A row's image, or what `views` look at of it; None, and why in `unreadable`, without one."""
    try:
        return decode_image(index.read(row), views=views)
    except (UnreadableImage, OSError) as error:
        unreadable[row] = str(error)
        return None
