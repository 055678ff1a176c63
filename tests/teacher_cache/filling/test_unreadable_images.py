"""Images whose bytes do not decode: left out up to a share, counted across writers."""

import pytest
from small import cache_document, cache_recipe, fill_cache, to_toml

from teacher_cache.cache.cache import absent_rows, open_cache
from teacher_cache.images.index import ImagesError, allowed_unreadable, index_images
from teacher_cache.storage.disk import Disk

IO_ERROR = "/proc/self/mem"
"""Reading it fails with EIO, whoever asks: as a disk does that loses a sector."""


def skipping(**changes):
    return cache_recipe(images__skip_unreadable=True, images__max_unreadable=1.0, **changes)


def test_bytes_that_are_there_and_do_not_decode_are_skipped_up_to_a_share(own_scans, tmp_path):
    train = own_scans / "train"
    for name in ("010", "011"):
        (train / "digit-1" / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(ImagesError, match=r"2 of 90 images are unreadable, at most 1 .*max_unread"):
        fill_cache(tmp_path / "cache", train, cache_recipe(images__skip_unreadable=True))
    assert absent_rows(open_cache(Disk(tmp_path / "cache"))) == frozenset()
    recipe = cache_recipe(images__skip_unreadable=True, images__max_unreadable=0.03)
    cache = fill_cache(tmp_path / "cache", train, recipe)
    assert {cache.index.keys[row] for row in absent_rows(cache)} == {
        "digit-1/010.png",
        "digit-1/011.png",
    }


def test_the_share_is_counted_across_writers(own_scans, tmp_path):
    train = own_scans / "train"
    (train / "digit-0" / "010.png").write_bytes(b"no image")  # of shard 0
    recipe = cache_recipe(images__skip_unreadable=True)
    from small import build_teacher

    from teacher_cache.filling.fill import fill
    from teacher_cache.filling.opening import open_or_create

    index = index_images(train)
    teacher = build_teacher(recipe, index)
    cache = open_or_create(Disk(tmp_path / "cache"), recipe, index, teacher)
    job = fill(cache, index, teacher, recipe)
    while 0 not in cache.sources.committed_shards():
        next(job)
    job.close()
    (train / "digit-2" / "010.png").write_bytes(b"no image")  # of shard 2, another writer's
    other = open_cache(cache.place)
    with pytest.raises(ImagesError, match="2 of 90 images are unreadable"):
        for _ in fill(other, index, teacher, recipe):
            pass


def test_one_image_may_always_be_unreadable():
    assert allowed_unreadable(10, 0.01) == 1
    assert allowed_unreadable(1_281_167, 0.01) == 12_811


def test_an_outage_is_one_line_and_the_same_command_goes_on(cli, own_scans, tmp_path):
    recipe = tmp_path / "cache.toml"
    document = cache_document(images__skip_unreadable=True, images__max_unreadable=1.0)
    recipe.write_text(to_toml(document))
    train = own_scans / "train"
    (train / "digit-1").rename(tmp_path / "mounted")
    (train / "digit-1").symlink_to(tmp_path / "mounted")
    fill = ["cache-teacher", recipe, "--data", train, "--out", tmp_path / "cache"]
    cli(*fill)
    (tmp_path / "mounted").rename(tmp_path / "away")
    done = cli(*fill, "--views", 4, check=1)
    assert done.stderr.count("\n") == 1
    assert "digit-1 cannot be read (No such file or directory): nothing is lost" in done.stderr
    (tmp_path / "away").rename(tmp_path / "mounted")
    assert "4 views of 90 images, complete" in cli(*fill, "--views", 4).stdout
