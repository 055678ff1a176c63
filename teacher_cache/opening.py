"""A cache to be filled: created, or opened if recipe, data and weights are those it was made of."""

from importlib.metadata import version

from teacher_cache.errors import CacheError
from teacher_cache.images import ImageIndex
from teacher_cache.manifest import Manifest
from teacher_cache.pixels import require_pixels_of
from teacher_cache.place import Root, place_of
from teacher_cache.recipe import CacheRecipe
from teacher_cache.render import PIXEL_ENGINE, pixel_libraries
from teacher_cache.store import GROUP_KEY, Cache, append_views, create_cache, open_cache
from teacher_cache.teacher import Teacher


def open_or_create(
    root: Root,
    recipe: CacheRecipe,
    index: ImageIndex,
    teacher: Teacher,
    *,
    accept_pixel_libraries: bool = False,
) -> Cache:
    """Open the cache to go on filling it, append views if the recipe has more, or create it.

    Args:
        root: where it lies.
        recipe: what it is made from, and its number of views.
        index: its images.
        teacher: the network that it is to hold the answers of.
        accept_pixel_libraries: where the libraries that touch pixels differ from the cache's,
            compare a sample of pictures instead of refusing.

    Raises:
        ReplayRefused: other pixel libraries, or, where they are accepted, other pixels.
        CacheError: the cache was made from another recipe, data set, teacher or pixel library.
    """
    manifest = _manifest(recipe, index, teacher)
    is_new = not place_of(root).exists(GROUP_KEY)
    # another process may be quicker to create one, of another recipe
    cache = create_cache(root, manifest, index) if is_new else open_cache(root)
    cache.store.sweep()  # only now is it sure that the folder is a cache
    if differing := cache.manifest.differences(manifest):
        raise CacheError(
            f"cache {root} was made otherwise: " + "; ".join(differing) + ": use the same recipe, "
            "data and weights to continue it, or another --out"
        )
    require_pixels_of(cache, index, accept_pixel_libraries=accept_pixel_libraries)
    if recipe.views.count < cache.view_count:
        raise CacheError(
            f"cache {root} holds {cache.view_count} views, the recipe asks for "
            f"{recipe.views.count}: views are never taken away; set views.count = "
            f"{cache.view_count} or more"
        )
    return append_views(cache, recipe.views.count)


def _manifest(recipe: CacheRecipe, index: ImageIndex, teacher: Teacher) -> Manifest:
    if recipe.topk.k > teacher.class_count:
        raise CacheError(
            f"topk.k is {recipe.topk.k}, the teacher has {teacher.class_count} classes: "
            f"set topk.k = {teacher.class_count} or less"
        )
    return Manifest(
        recipe=recipe.model_dump(mode="json"),
        recipe_digest=recipe.digest(),
        index_digest=index.digest(),
        image_count=len(index),
        class_count=teacher.class_count,
        teacher={"weights_sha256": teacher.weights_sha256},
        pixel_engine=PIXEL_ENGINE,
        pixel_libraries=pixel_libraries(),
        versions={name: version(name) for name in ("torch", "timm", "zarr", "numcodecs")},
    )
