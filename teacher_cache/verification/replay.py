"""Whether what is read here is what the teacher saw: the images' bytes, and their pixels.

B rows of a batch.
"""

from collections.abc import Mapping

import numpy as np

from teacher_cache.cache.blocks import complete_views
from teacher_cache.cache.cache import Cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.cache.sources import Sources
from teacher_cache.errors import ImagesChanged, MissingRecords, ReplayRefused
from teacher_cache.images.index import ImageIndex
from teacher_cache.loading.queue import Rendered, render_here
from teacher_cache.loading.renderers import Request, ViewRenderer
from teacher_cache.pixels.render import PIXEL_ENGINE, pixel_libraries
from teacher_cache.record import ROWS_PER_CHECK, checked_rows


def require_same_images(sources: Sources, index: ImageIndex, images: Rendered) -> None:
    """Compare every image of a batch with the one that the teacher read, by its bytes.

    Args:
        sources: which images the cache's rows are.
        index: the rows over the data folder.
        images: a batch that was read and rendered just now.

    Raises:
        ImagesChanged: naming the first image that differs.
    """
    if differing := sources.differing(images.request.rows, images.sources_B):
        raise ImagesChanged(
            f"{index.name_of(differing[0])}: its bytes are not those that the teacher "
            f"read ({len(differing)} of this batch of {len(images.request.rows)} images): it was "
            "replaced or encoded anew since the cache was begun: restore the images, or fill a "
            "new cache"
        )


def differing_pixels(checks: Mapping[tuple[int, int], int], check: np.ndarray) -> list[int]:
    """The rows of one view, rendered just now, whose pixels are not those that the teacher saw.

    Args:
        checks: (view, row) -> CRC-32 of the pixels, for the rows of this view that are checked.
        check: the view's `check` array.
    """
    return [row for (_, row), crc in checks.items() if crc != int(check[row // ROWS_PER_CHECK])]


def require_same_pixels(index: ImageIndex, images: Rendered, check: np.ndarray) -> None:
    """The replay is proved, not assumed: every checked row of a batch is compared.

    Raises:
        ReplayRefused: naming the first row whose pixels differ.
    """
    for row in differing_pixels(images.checks, check):
        view = images.request.views[0]
        raise ReplayRefused(
            f"{index.name_of(row)}, view {view}: its pixels have CRC-32 "
            f"{images.checks[view, row]:08x}, the teacher saw "
            f"{int(check[row // ROWS_PER_CHECK]):08x}, though the image is the same: this machine "
            "renders otherwise, or the cache's record is damaged: run verify-cache, and compare "
            "the versions of the pixel libraries; nothing was trained on it"
        )


SAMPLED_VIEWS = 8


SAMPLED_ROWS = 64
"""A view: 512 pictures in all, of every kind of augmentation."""


def require_pixels_of(cache: Cache, index: ImageIndex, *, accept_pixel_libraries: bool) -> None:
    """Refuse to render for a cache whose pixels other libraries made.

    Args:
        cache: whose manifest names the libraries.
        index: its images.
        accept_pixel_libraries: where they differ, compare a sample of pictures instead.

    Raises:
        ReplayRefused: other pixel libraries, or, where they are accepted, other pixels.
        MissingRecords: they are accepted, but there is no complete view to sample from.
    """
    try:
        cache.manifest.require_same_pixels(PIXEL_ENGINE, pixel_libraries())
    except ReplayRefused:
        if not accept_pixel_libraries:
            raise
        _require_same_sample(cache, index)


def _require_same_sample(cache: Cache, index: ImageIndex) -> None:
    """Render a sample of checked rows and compare.

    Raises:
        ReplayRefused: a row whose pixels differ.
        MissingRecords: no complete view to sample from.
    """
    views = complete_views(cache)
    if not views:
        raise MissingRecords(
            f"cache {cache.place} has no complete view, so its pixels cannot be compared: fill it "
            "further, or install the cache's pixel libraries"
        )
    recipe = cache.manifest.parsed_recipe().views
    renderer = ViewRenderer.of(index, recipe)
    compared, differing = 0, []
    for view in views[:: -(-len(views) // SAMPLED_VIEWS)]:
        slab = read_slab(cache, view)
        rows = checked_rows(view, range(len(index)))
        rows = rows[~np.isin(rows, list(slab.absent_rows))][:: max(len(rows) // SAMPLED_ROWS, 1)]
        images = render_here(renderer, Request(rows, (view,)))
        require_same_images(cache.sources, index, images)
        compared += len(rows)
        wrong = differing_pixels(images.checks, slab.check)
        differing += [f"view {view} of {index.keys[row]}" for row in wrong]
    if differing:
        raise ReplayRefused(
            f"{len(differing)} of {compared} sampled pictures are not those the teacher saw "
            f"(first: {differing[0]}): install the cache's pixel libraries, or fill a new cache"
        )
