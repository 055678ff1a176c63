"""Images that do not decode: an error, or left out and reported, up to a share of the set.

B rows of a batch.
"""

import logging
from dataclasses import dataclass, field

import numpy as np

from teacher_cache.images.index import ImageIndex, ImagesError, allowed_unreadable
from teacher_cache.loading.queue import Rendered
from teacher_cache.recipes.cache_recipe import UnreadableImages

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Whether images of a set that do not decode are left out, and which have been so far."""

    index: ImageIndex
    rule: UnreadableImages
    rows: set[int] = field(default_factory=set)

    def readable(self, images: Rendered) -> np.ndarray:
        """Bool [B]: which rows of a batch decode.

        Raises:
            ImagesError: an image that does not, unless `images.skip_unreadable`; or more of them
                than `images.max_unreadable` allows.
        """
        for row, reason in images.unreadable.items():
            if row not in self.rows:
                self._note(row, reason)
        return ~np.isin(images.request.rows, list(images.unreadable))

    def _note(self, row: int, reason: str) -> None:
        name = self.index.name_of(row)
        if not self.rule.skip_unreadable:
            raise ImagesError(
                f"{name}: {reason}: repair it, or set images.skip_unreadable = true to leave such "
                "images out (to remove it would make this another data set); what was saved last "
                "is kept, and the same command continues from it"
            )
        allowed = allowed_unreadable(len(self.index), self.rule.max_unreadable)
        self.rows.add(row)
        if len(self.rows) > allowed:
            raise ImagesError(
                f"{len(self.rows)} of {len(self.index)} images are unreadable, at most {allowed} "
                f"are allowed (last: {name}: {reason}): repair them, or set images.max_unreadable "
                "to a larger share of the images"
            )
        _log.warning("%s: %s: left out", name, reason)
