"""What is predicted of a cache, against the cache."""

import pytest
from small import build_teacher, cache_recipe, fill_cache

from teacher_cache.filling.plan import plan
from teacher_cache.images.index import index_images
from teacher_cache.verification.inspection import inspect


@pytest.mark.parametrize(("batch_size", "off"), [(32, 0.03), (16, 0.2)])  # all of 90, or 64
@pytest.mark.parametrize("encoding", ["default", "compact"])
@pytest.mark.parametrize("rows_per_shard", [32, 64, 512, 32_768])
def test_the_bytes_of_a_small_set_are_those_of_its_cache(
    scans, tmp_path, rows_per_shard, encoding, batch_size, off
):
    """Shards that are not full are filled up; a sample in a smaller shard would not tell."""
    recipe = cache_recipe(
        storage__rows_per_shard=rows_per_shard,
        storage__encoding=encoding,
        teacher__batch_size=batch_size,
        topk__k=3,
    )
    index = index_images(scans / "train")
    predicted = plan(recipe, index, build_teacher(recipe, index))
    cache = fill_cache(tmp_path / "cache", scans / "train", recipe)
    measured = inspect(cache)["bytes a record"]
    # view 0 of all images is the sample; other views compress a little better or worse
    assert predicted["bytes a record"] == pytest.approx(measured, rel=off)
