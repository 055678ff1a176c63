"""Create the cache to be filled, or open it if it was made of the same recipe, data and weights."""

from collections.abc import Mapping
from importlib.metadata import version

from teacher_cache.cache.cache import Cache, append_views, create_cache, open_cache
from teacher_cache.cache.teacher_sample import TeacherSample, keep_sample, read_sample
from teacher_cache.errors import CacheError, ReplayRefused
from teacher_cache.format.manifest import Manifest
from teacher_cache.images.index import ImageIndex
from teacher_cache.pixels.render import PIXEL_ENGINE, pixel_libraries
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.storage.keys import MANIFEST
from teacher_cache.storage.place import Place
from teacher_cache.teacher.networks import Teacher
from teacher_cache.verification.replay import require_pixels_of
from teacher_cache.verification.sampling import ask_sample, disagreement, require_good


def open_or_create(
    place: Place,
    recipe: CacheRecipe,
    index: ImageIndex,
    teacher: Teacher,
    *,
    accept_pixel_libraries: bool = False,
    accept_teacher_libraries: bool = False,
) -> Cache:
    """Open the cache to go on filling it, append views if the recipe has more, or create it.

    The teacher is asked for a sample before the first block, and the sample is kept.

    Args:
        place: where it lies.
        recipe: what it is made from, and its number of views.
        index: its images.
        teacher: the network that it is to hold the answers of.
        accept_pixel_libraries: where the libraries that touch pixels differ from the cache's,
            compare a sample of pictures instead of refusing.
        accept_teacher_libraries: where torch or timm differ from the cache's, ask the teacher for
            the sample again instead of refusing.

    Raises:
        ReplayRefused: other libraries, or, where they are accepted, other pixels or answers.
        TeacherError: a trained teacher that knows hardly any label of the sample.
        CacheError: the cache was made from another recipe, data set, teacher or pixel library.
    """
    manifest = _manifest(recipe, index, teacher)
    if place.exists(MANIFEST):
        cache, sample = open_cache(place), None
    else:
        sample = ask_sample(index, teacher, recipe)
        require_good(sample, recipe, index, teacher.class_count)
        # another process may have created it meanwhile
        cache = create_cache(place, manifest, index)
    cache.place.sweep()  # only now is it sure that the folder is a cache
    _require_same_manifest(cache, manifest)
    require_pixels_of(cache, index, accept_pixel_libraries=accept_pixel_libraries)
    _keep_sample(cache, sample, recipe, index, teacher)
    if differing := cache.manifest.other_teacher_libraries(manifest.versions):
        _require_same_answers(cache, differing, index, teacher, accept=accept_teacher_libraries)
    if recipe.views.count < cache.view_count:
        raise CacheError(
            f"cache {place} holds {cache.view_count} views, the recipe asks for "
            f"{recipe.views.count}: views are never taken away; set views.count = "
            f"{cache.view_count} or more"
        )
    return append_views(cache, recipe.views.count)


def _keep_sample(
    cache: Cache,
    sample: TeacherSample | None,
    recipe: CacheRecipe,
    index: ImageIndex,
    teacher: Teacher,
) -> None:
    """Put the sample if there is none: the process that created the cache may have been killed."""
    if read_sample(cache) is not None:
        return
    if sample is None:
        sample = ask_sample(index, teacher, recipe)
        require_good(sample, recipe, index, teacher.class_count)
    keep_sample(cache, sample)


def require_same_origin(
    cache: Cache, recipe: CacheRecipe, index: ImageIndex, teacher: Teacher
) -> None:
    """Refuse a recipe, images or a teacher that are not those that a cache was made from.

    Raises:
        CacheError: naming each setting that differs.
    """
    _require_same_manifest(cache, _manifest(recipe, index, teacher))


def _require_same_manifest(cache: Cache, manifest: Manifest) -> None:
    if differing := cache.manifest.differences(manifest):
        raise CacheError(
            f"cache {cache.place} was made otherwise: " + "; ".join(differing) + ": use the same "
            "recipe, data and weights to continue it, or another --out"
        )


def _require_same_answers(
    cache: Cache, differing: list[str], index: ImageIndex, teacher: Teacher, *, accept: bool
) -> None:
    """Refuse libraries that may compute other logits, unless the sample shows that they do not."""
    if not accept:
        raise ReplayRefused(
            f"cache {cache.place} was filled with other libraries of the teacher's: "
            + "; ".join(differing)
            + ": install the cache's versions, or fill a new cache; --accept-teacher-libraries "
            "goes on if the teacher's answers to a sample are the same within rounding"
        )
    sample = read_sample(cache)
    assert sample is not None, "it was put just before"
    if words := disagreement(sample, index, teacher, cache.manifest.parsed_recipe()):
        raise ReplayRefused(
            f"cache {cache.place}: {'; '.join(differing)}, and {words}: install the cache's "
            "versions, or fill a new cache"
        )


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
        teacher=teacher.identity(),
        pixel_engine=PIXEL_ENGINE,
        pixel_libraries=pixel_libraries(),
        versions=library_versions(),
    )


def library_versions() -> Mapping[str, str]:
    """Name -> version of the libraries that compute and store the teacher's answers."""
    return {name: version(name) for name in ("torch", "timm", "zarr", "numcodecs")}
