"""Renderers turn rows x views into pixels; they run in the loader's workers.

Nothing here imports torch, so that a worker which starts as a fresh process starts fast.

G views, B rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import google_crc32c
import numpy as np

from teacher_cache.images.index import ImageIndex
from teacher_cache.pixels.render import (
    Picture,
    UnreadableImage,
    decode_image,
    pixel_crc,
    render,
    render_center,
)
from teacher_cache.recipes.cache_recipe import ViewsSection
from teacher_cache.record import ROWS_PER_CHECK
from teacher_cache.views.policy import ViewPolicy
from teacher_cache.views.view import View, sample_view


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Which pixels to render: each of the rows under each of the views."""

    rows: np.ndarray
    """int64 [B] rows of the index."""
    views: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """Checksums and failures of a request, found while its pixels were rendered."""

    checks: dict[tuple[int, int], int]
    """(view, row) -> CRC-32 of the pixels at the cache's size, for the rows that are checked."""
    unreadable: dict[int, str]
    """Row -> why the bytes of its image cannot be decoded."""
    sources: dict[int, int]
    """Row -> CRC-32C of the encoded image as it was read."""


class Renderer(Protocol):
    """Anything that turns a request into pixels; it is picklable, since it runs in workers."""

    def shape(self, views: int, rows: int) -> tuple[int, int, int, int, int]:
        """The shape (G, B, H, W, 3) of the pixels of so many rows under so many views."""
        ...

    def render_into(self, request: Request, pixels_GBHWC: np.ndarray) -> Marks:
        """Write every pixel of a request; an image that cannot be decoded becomes black."""
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
    """The cache's image size, at which the CRC-32 of a checked row's pixels is taken."""

    @classmethod
    def of(cls, index: ImageIndex, views: ViewsSection, size: int | None = None) -> Self:
        """A renderer for the views of a cache's recipe, at the recipe's size or another."""
        return cls(index, views, views.seed, size or views.size, views.interpolation, views.size)

    def shape(self, views: int, rows: int) -> tuple[int, int, int, int, int]:
        """One square for each view and row."""
        return views, rows, self.size, self.size, 3

    def render_into(self, request: Request, pixels_GBHWC: np.ndarray) -> Marks:
        """Decode each image once, render it under every view, take the CRC-32 of checked rows."""
        marks = Marks({}, {}, {})
        for b, row in enumerate(request.rows.tolist()):
            views = [self._view(row, number) for number in request.views]
            picture = _decoded(self.index, row, marks, views)
            if picture is None:
                pixels_GBHWC[:, b] = 0
                continue
            for g, (number, view) in enumerate(zip(request.views, views, strict=True)):
                pixels = self._render(picture, view, self.size, pixels_GBHWC[g, b])
                # one view in ROWS_PER_CHECK checks a row, and so many views check every row
                if row % ROWS_PER_CHECK != number % ROWS_PER_CHECK:
                    continue
                if self.check_size != self.size:
                    pixels = self._render(picture, view, self.check_size)
                marks.checks[number, row] = pixel_crc(pixels)
        return marks

    def name_of(self, row: int) -> str:
        """The image's path."""
        return self.index.name_of(row)

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

    def shape(self, views: int, rows: int) -> tuple[int, int, int, int, int]:
        """One square for each row, whatever the number of views."""
        return 1, rows, self.size, self.size, 3

    def render_into(self, request: Request, pixels_GBHWC: np.ndarray) -> Marks:
        """Decode and crop each image."""
        marks = Marks({}, {}, {})
        for b, row in enumerate(request.rows.tolist()):
            picture = _decoded(self.index, row, marks)
            if picture is None:
                pixels_GBHWC[:, b] = 0
                continue
            render_center(
                picture,
                size=self.size,
                crop_ratio=self.crop_ratio,
                interpolation=self.interpolation,
                out=pixels_GBHWC[0, b],
            )
        return marks

    def name_of(self, row: int) -> str:
        """The image's path."""
        return self.index.name_of(row)


def _decoded(
    index: ImageIndex, row: int, marks: Marks, views: Sequence[View] | None = None
) -> Picture | None:
    """Read and decode a row's image, or the part of it that the views look at.

    If it cannot be decoded, the result is None and the reason is in `marks.unreadable`.
    """
    data = index.read(row)
    marks.sources[row] = google_crc32c.value(data)
    try:
        return decode_image(data, views=views)
    except UnreadableImage as error:
        marks.unreadable[row] = str(error)
        return None
