"""Whether what is read here is what the teacher saw: the images' bytes, and their pixels.

B rows of a batch.
"""

from collections.abc import Mapping

import numpy as np

from teacher_cache.errors import ImagesChanged, ReplayRefused
from teacher_cache.images import ImageIndex
from teacher_cache.layout import ROWS_PER_CHECK
from teacher_cache.loader import Rendered
from teacher_cache.sources import Sources


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
