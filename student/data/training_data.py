"""What a run trains on: a data folder, seen through a cache's views or through its own.

N rows, V views.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from student.losses.criterion import Criterion, lack
from student.recipe import DistillSection, StudentRecipe
from teacher_cache.cache.cache import Cache, absent_rows
from teacher_cache.cache.teacher_sample import read_sample
from teacher_cache.errors import CacheError, MissingRecords, ReplayRefused
from teacher_cache.images.index import ImageIndex
from teacher_cache.loading.renderers import ViewRenderer
from teacher_cache.recipes.cache_recipe import UnreadableImages
from teacher_cache.verification.fidelity import Fidelity, Student, expected
from teacher_cache.verification.replay import require_pixels_of

COUNTS = ("images trained on", "views")
"""What of `TrainingData.digest` is a number, and no digest."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Images, the way they are shown, and where the targets come from."""

    index: ImageIndex
    renderer: ViewRenderer
    cache: Cache | None
    class_count: int
    rows: np.ndarray
    """int64 [N] the rows that are trained on: all but those absent from the cache."""
    temperature_column: int
    """Which column of the cache's `tail` belongs to the recipe's temperature."""
    reuse_views: bool
    unreadable: UnreadableImages = field(default_factory=UnreadableImages)
    """What becomes of images that do not decode; a cache knows its own."""
    follow_timeout_s: float | None = None
    """How long to wait for views that are still being filled; None: they must be there."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """What the cache's sample measured; nothing in caches of earlier versions."""

    def view_of(self, epoch: int) -> int:
        """The view that an epoch shows."""
        return epoch % self.cache.view_count if self.cache and self.reuse_views else epoch

    def fidelity(self, distill: DistillSection) -> Mapping[Student, Fidelity] | None:
        """How near the loss on the cache's records comes to that on the teacher's whole answers.

        None where it was not measured: of earlier caches, and of other losses than the paper's.
        """
        if distill.alpha == 0 or distill.loss is not Criterion.KL:
            return None
        return expected(self.measures, distill.temperature, distill.tail)

    def settings(self, recipe: StudentRecipe) -> dict[str, Any]:
        """A recipe's settings as they take effect: the size is filled in, the views the cache's."""
        document = recipe.model_dump(mode="json")
        document["student"]["size"] = self.renderer.size
        if self.cache is not None:
            views = self.cache.manifest.parsed_recipe().views.model_dump(mode="json")
            document["views"] |= {**views, "count": self.cache.view_count}
        return document

    def digest(self) -> dict[str, str]:
        """A digest of what the weights depend on besides the recipe: images, labels, records."""
        digest = {"images": self.index.digest()}
        if self.cache is not None:
            digest["cache recipe"] = self.cache.manifest.recipe_digest
            digest["teacher weights"] = self.cache.manifest.teacher_weights_sha256
            digest["images trained on"] = str(len(self.rows))
            if self.reuse_views:
                digest["views"] = str(self.cache.view_count)
        return digest


def plain_data(recipe: StudentRecipe, index: ImageIndex) -> TrainingData:
    """Supervised training without a teacher: the recipe's own views, one an epoch.

    Raises:
        CacheError: the recipe distils.
    """
    if recipe.distill.alpha > 0:
        raise CacheError(
            f"distill.alpha is {recipe.distill.alpha} and there is no cache to distil from: pass "
            "--cache, or --set distill.alpha=0 for plain supervised training"
        )
    views, size = recipe.views, recipe.student.size or recipe.views.size
    renderer = ViewRenderer(index, views, views.seed, size, views.interpolation, check_size=size)
    rows = np.arange(len(index))
    return TrainingData(
        index,
        renderer,
        None,
        index.class_count,
        rows,
        0,
        reuse_views=False,
        unreadable=recipe.images,
    )


def replayed_data(
    recipe: StudentRecipe,
    index: ImageIndex,
    cache: Cache,
    *,
    follow_timeout_s: float | None = None,
    accept_pixel_libraries: bool = False,
) -> TrainingData:
    """Training on a cache's views: the pixels that the teacher saw, and what it said of them.

    Args:
        recipe: the student's.
        index: the cache's index over the data folder, from `teacher_cache.images.index.rebase`.
        cache: an open cache.
        follow_timeout_s: wait so long for the next block of a cache that is still being filled;
            None: every view must be there when it is needed.
        accept_pixel_libraries: where the libraries that touch pixels differ from the cache's,
            compare a sample of pictures instead of refusing.

    Raises:
        ReplayRefused: other pixel libraries, or views that the recipe wants otherwise.
        MissingRecords: fewer views than epochs, while views.reuse is not set.
        CacheError: a temperature whose tails the cache does not hold, a loss that needs classes
            which it does not keep, or a damaged sample.
    """
    cached = cache.manifest.parsed_recipe()
    require_pixels_of(cache, index, accept_pixel_libraries=accept_pixel_libraries)
    _require_same_views(recipe, cache)
    epochs, views = recipe.schedule.epochs, cache.view_count
    if epochs > views and not recipe.views.reuse and follow_timeout_s is None:
        raise MissingRecords(
            f"cache holds views 0-{views - 1}, epoch {views} asks for view {views}: append views "
            f"('cli.py cache-teacher ... --views {epochs}') or set views.reuse = true"
        )
    temperatures = cached.topk.temperatures
    if recipe.distill.temperature not in temperatures:
        raise CacheError(
            f"distill.temperature is {recipe.distill.temperature}, the cache holds tails for "
            f"{', '.join(map(str, temperatures))}: choose one of these, or fill a cache with it"
        )
    if wrong := lack(
        recipe.distill.loss,
        cached.topk.k,
        cache.manifest.class_count,
        has_moments=cache.layout.moments,
    ):
        raise CacheError(wrong)
    renderer = ViewRenderer.of(index, cached.views, recipe.student.size)
    absent, sample = absent_rows(cache), read_sample(cache)
    return TrainingData(
        index,
        renderer,
        cache,
        cache.manifest.class_count,
        np.setdiff1d(np.arange(len(index)), np.array(sorted(absent), np.int64), assume_unique=True),
        temperatures.index(recipe.distill.temperature),
        reuse_views=recipe.views.reuse,
        follow_timeout_s=follow_timeout_s,
        measures=sample.measures if sample else {},
    )


def _require_same_views(recipe: StudentRecipe, cache: Cache) -> None:
    cached = cache.manifest.parsed_recipe().views.model_dump()
    differing = [
        f"views.{name} is {value!r} in the recipe, {cached[name]!r} in the cache"
        for name, value in recipe.views.model_dump(exclude_unset=True, exclude={"reuse"}).items()
        if cached[name] != value
    ]
    if differing:
        raise ReplayRefused(
            "; ".join(differing) + ": leave [views] to the cache, or fill a cache with these views"
        )
