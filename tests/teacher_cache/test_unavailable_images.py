"""What cannot be reached stops a job; only bytes that do not decode are unreadable."""

import os
import shutil
import socket
import threading
from pathlib import Path

import pytest
from small import cache_document, cache_recipe, fill_cache, to_toml

from teacher_cache.images import ImagesError, allowed_unreadable, index_images
from teacher_cache.listing import ImageUnavailable
from teacher_cache.store import absent_rows, missing_blocks, open_cache

IO_ERROR = "/proc/self/mem"
"""Reading it fails with EIO, whoever asks: as a disk does that loses a sector."""


def skipping(**changes):
    return cache_recipe(images__skip_unreadable=True, images__max_unreadable=1.0, **changes)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", ["gone", "folder gone", "io error"])
def test_images_that_are_away_stop_a_fill_that_skips_unreadable_ones(
    own_scans, tmp_path, fault, workers
):
    train = own_scans / "train"
    index = index_images(train)
    from small import build_teacher

    from teacher_cache.fill import fill
    from teacher_cache.opening import open_or_create

    recipe = skipping(loader__workers=workers)
    teacher = build_teacher(recipe, index)
    cache = open_or_create(tmp_path / "cache", recipe, index, teacher)
    victim = train / "digit-1" / "010.png"
    if fault == "folder gone":
        shutil.rmtree(victim.parent)
    else:
        victim.unlink()
        if fault == "io error":
            victim.symlink_to(IO_ERROR)
    with pytest.raises((ImageUnavailable, ImagesError), match=r"digit-1/0.* cannot be reached"):
        for _ in fill(cache, index, teacher, recipe):
            pass
    assert absent_rows(cache) == frozenset()
    assert len(missing_blocks(cache)) >= 6  # what was before the fault is kept


def test_a_class_folder_whose_mount_is_away_stops_the_listing(own_scans, tmp_path):
    train = own_scans / "train"
    (train / "digit-1").rename(tmp_path / "mounted")
    (train / "digit-1").symlink_to(tmp_path / "mounted")
    assert len(index_images(train)) == 90
    (tmp_path / "mounted").rename(tmp_path / "elsewhere")
    with pytest.raises(ImageUnavailable, match="digit-1: cannot be reached"):
        index_images(train)
    (train / "digit-1").unlink()
    (train / "digit-2" / "deep").symlink_to(tmp_path / "mounted")
    with pytest.raises(ImageUnavailable, match="deep: cannot be reached"):
        index_images(train)


def test_a_folder_that_vanishes_while_it_is_listed_stops_the_listing(own_scans, monkeypatch):
    """A real race is rare, so the folder goes between the listing of its parent and its own."""
    train, walk = own_scans / "train", os.walk

    def late(top, **options):
        if Path(top).name == "digit-2":
            shutil.rmtree(top)
        return walk(top, **options)

    monkeypatch.setattr(os, "walk", late)
    with pytest.raises(ImageUnavailable, match="digit-2: cannot be reached"):
        index_images(train)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to a pipe"])
def test_what_is_no_file_is_neither_waited_for_nor_read(own_scans, kind):
    victim = own_scans / "train" / "digit-1" / "010.png"
    victim.unlink()
    if kind == "pipe":
        os.mkfifo(victim)
    elif kind == "device":
        victim.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            folder = os.open(victim.parent, os.O_RDONLY)
            server.bind(f"/proc/self/fd/{folder}/010.png")
            os.close(folder)
    else:
        os.mkfifo(own_scans / "pipe")
        victim.symlink_to(own_scans / "pipe")
    index, caught = index_images(own_scans / "train"), []

    def read():
        try:
            index.read(index.keys.index("digit-1/010.png"))
        except (ImagesError, ImageUnavailable) as error:
            caught.append(str(error))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(60)
    assert not reader.is_alive()
    assert "digit-1/010.png" in caught[0]


def test_bytes_that_are_there_and_do_not_decode_are_skipped_up_to_a_share(own_scans, tmp_path):
    train = own_scans / "train"
    for name in ("010", "011"):
        (train / "digit-1" / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(ImagesError, match=r"2 of 90 images are unreadable, at most 1 .*max_unread"):
        fill_cache(tmp_path / "cache", train, cache_recipe(images__skip_unreadable=True))
    assert absent_rows(open_cache(tmp_path / "cache")) == frozenset()
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

    from teacher_cache.fill import fill
    from teacher_cache.opening import open_or_create

    index = index_images(train)
    teacher = build_teacher(recipe, index)
    cache = open_or_create(tmp_path / "cache", recipe, index, teacher)
    job = fill(cache, index, teacher, recipe)
    while 0 not in cache.sources.committed_shards():
        next(job)
    job.close()
    (train / "digit-2" / "010.png").write_bytes(b"no image")  # of shard 2, another writer's
    other = open_cache(cache.root)
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
    assert "digit-1: cannot be reached (No such file or directory): nothing already" in done.stderr
    (tmp_path / "away").rename(tmp_path / "mounted")
    assert "4 views of 90 images, complete" in cli(*fill, "--views", 4).stdout
