"""Rows x views -> pixels, written where they are wanted; what runs in the loader's workers.

Nothing here imports torch, so that a worker which starts as a fresh process starts fast.

G views, B rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL.Image import Image

from teacher_cache.arrays import ROWS_PER_CHECK
from teacher_cache.images import ImageIndex
from teacher_cache.render import UnreadableImage, decode_image, pixel_crc, render, render_center
from teacher_cache.views import ViewPolicy, sample_view


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Which pixels to render: every row under every view."""

    rows: np.ndarray
    """int64 [B] rows of the index."""
    views: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """What rendering a request found out besides its pixels."""

    checks: dict[tuple[int, int], int]
    """(view, row) -> CRC-32 of the pixels at the cache's size, for the rows that are checked."""
    unreadable: dict[int, str]
    """Row -> why its image could not be read."""


class Renderer(Protocol):
    """Whatever turns a request into pixels; it runs in the workers, so it is picklable."""

    def shape(self, views: int, rows: int) -> tuple[int, int, int, int, int]:
        """(G, B, H, W, 3) of what a request for so many views of so many rows becomes."""
        ...

    def render_into(self, request: Request, pixels_GBHWC: np.ndarray) -> Marks:
        """Write every pixel of a request; black where the image is unreadable."""
        ...

    def name_of(self, row: int) -> str:
        """What an error calls the image of a row."""
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

    def shape(self, views: int, rows: int) -> tuple[int, int, int, int, int]:
        """A square a view and row."""
        return views, rows, self.size, self.size, 3

    def render_into(self, request: Request, pixels_GBHWC: np.ndarray) -> Marks:
        """Decode each image once, render it under every view, sum the checked ones."""
        marks = Marks({}, {})
        for b, row, image in _decoded(self.index, request.rows, pixels_GBHWC, marks.unreadable):
            key = self.index.keys[row]
            for g, number in enumerate(request.views):
                view = sample_view(self.policy, seed=self.seed, key=key, view=number)
                pixels = render(image, view, size=self.size, interpolation=self.interpolation)
                pixels_GBHWC[g, b] = pixels
                if row % ROWS_PER_CHECK != number % ROWS_PER_CHECK:
                    continue
                if self.check_size != self.size:
                    pixels = render(
                        image, view, size=self.check_size, interpolation=self.interpolation
                    )
                marks.checks[number, row] = pixel_crc(pixels)
        return marks

    def name_of(self, row: int) -> str:
        """The image's path."""
        return str(self.index.root / self.index.keys[row])


@dataclass(frozen=True, slots=True, eq=False)
class CenterRenderer:
    """The one centre crop of evaluation images; a request's views are ignored."""

    index: ImageIndex
    size: int
    crop_ratio: float
    interpolation: str

    def shape(self, views: int, rows: int) -> tuple[int, int, int, int, int]:
        """A square a row, however many views are asked for."""
        return 1, rows, self.size, self.size, 3

    def render_into(self, request: Request, pixels_GBHWC: np.ndarray) -> Marks:
        """Decode and crop each image."""
        marks = Marks({}, {})
        for b, _, image in _decoded(self.index, request.rows, pixels_GBHWC, marks.unreadable):
            pixels_GBHWC[0, b] = render_center(
                image,
                size=self.size,
                crop_ratio=self.crop_ratio,
                interpolation=self.interpolation,
            )
        return marks

    def name_of(self, row: int) -> str:
        """The image's path."""
        return str(self.index.root / self.index.keys[row])


def _decoded(
    index: ImageIndex, rows: np.ndarray, pixels_GBHWC: np.ndarray, unreadable: dict[int, str]
) -> Iterator[tuple[int, int, Image]]:
    """(position, row, image) of every readable row; the others are blackened and named."""
    for position, row in enumerate(rows.tolist()):
        try:
            image = decode_image(index.read(row))
        except (UnreadableImage, OSError) as error:
            pixels_GBHWC[:, position] = 0
            unreadable[row] = str(error)
            continue
        yield position, row, image
