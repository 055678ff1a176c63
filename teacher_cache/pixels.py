"""Whether pixels rendered here are those that the teacher saw: by the cache's `check` array."""

import numpy as np

from teacher_cache.errors import MissingRecords, ReplayRefused
from teacher_cache.images import ImageIndex
from teacher_cache.layout import ROWS_PER_CHECK
from teacher_cache.loader import Request, ViewRenderer, render_here
from teacher_cache.render import PIXEL_ENGINE, pixel_libraries
from teacher_cache.replay import differing_pixels, require_same_images
from teacher_cache.slab import read_slab
from teacher_cache.store import Cache, checked_row, complete_views

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
            f"cache {cache.root} has no complete view, so its pixels cannot be compared: fill it "
            "further, or install the cache's pixel libraries"
        )
    recipe = cache.manifest.parsed_recipe().views
    renderer = ViewRenderer.of(index, recipe)
    compared, differing = 0, []
    for view in views[:: -(-len(views) // SAMPLED_VIEWS)]:
        slab = read_slab(cache, view)
        rows = np.arange(checked_row(view, 0), len(index), ROWS_PER_CHECK)
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
