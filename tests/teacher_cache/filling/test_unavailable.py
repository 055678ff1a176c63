"""What cannot be read stops a job; only bytes that are there and do not decode are left out."""

import os
import shutil
import socket
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from teacher_cache.images.folder import list_folder
from teacher_cache.images.index import ImagesError, ImageUnavailable, index_images, rebase
from teacher_cache.loading.loader import LoaderSettings, rendered
from teacher_cache.loading.queue import render_here
from teacher_cache.loading.renderers import CenterRenderer, Request, ViewRenderer
from teacher_cache.views.policy import ViewPolicy


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(path.parent)  # a socket's path is short
        server.bind(path.name)


def link_to(target):
    return lambda path: path.symlink_to(target)


ODD = {
    "a FIFO": make_fifo,
    "a socket": make_socket,
    "a device": link_to("/dev/zero"),
    "No such file": link_to("nowhere"),
    "Too many levels": lambda path: path.symlink_to(path.name),
}


@pytest.fixture
def index(own_scans, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # which make_socket leaves
    return index_images(own_scans / "train")


@pytest.mark.parametrize("words", ODD)
def test_what_is_no_file_but_named_as_an_image_stops_the_listing(index, words):
    path = index.root / "digit-1" / "odd.png"
    ODD[words](path)
    with pytest.raises(ImageUnavailable, match=rf"digit-1/odd\.png cannot be read \(.*{words}"):
        index_images(index.root)


def test_links_to_folders_that_are_away_stop_the_listing(index):
    shutil.move(index.root / "digit-2", index.root.parent / "elsewhere")
    (index.root / "digit-2").symlink_to(index.root.parent / "elsewhere")
    assert rebase(index, index.root).keys == index.keys
    (index.root / "digit-0" / "deeper").symlink_to("unmounted")
    with pytest.raises(ImageUnavailable, match=r"digit-0/deeper cannot be read"):
        index_images(index.root)
    (index.root / "digit-0" / "deeper").unlink()
    shutil.rmtree(index.root.parent / "elsewhere")
    with pytest.raises(ImageUnavailable, match=r"digit-2 cannot be read .*run the same command"):
        index_images(index.root)


def test_a_folder_that_vanishes_while_it_is_listed_stops_the_listing(index, monkeypatch):
    scandir = os.scandir

    def late(path):
        found = scandir(path)
        if Path(path) == index.root / "digit-0":  # the folders were named, and now one is moved
            shutil.move(index.root / "digit-2", index.root.parent / "moved")
        return found

    monkeypatch.setattr(os, "scandir", late)
    with pytest.raises(ImageUnavailable, match=r"digit-2 cannot be read \(No such file"):
        list_folder(index.root)


def eio(path):
    path.unlink()
    path.symlink_to("/proc/self/mem")  # a regular file whose first page cannot be read


def gone(path):
    path.unlink()


def away(path):
    shutil.move(path.parent, path.parents[2] / "away")
    path.parent.write_bytes(b"")  # ENOTDIR


def fifo(path):
    path.unlink()
    os.mkfifo(path)


FAULTS = {"Input/output error": eio, "No such file": gone, "Not a directory": away, "FIFO": fifo}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("words", FAULTS)
def test_an_image_that_cannot_be_read_stops_the_job_in_one_line(index, words, workers):
    FAULTS[words](index.root / index.keys[7])
    requests = [Request(np.arange(10), (0,))] * 3
    for renderer in (
        CenterRenderer(index, 24, 1.0, "bicubic"),
        ViewRenderer(index, ViewPolicy(), 3, 24, "bicubic", check_size=24),
    ):
        with (
            rendered(renderer, requests, LoaderSettings(workers), largest=(1, 10)) as loader,
            pytest.raises(ImageUnavailable) as caught,
        ):
            next(loader)
        named = "000" if words == "Not a directory" else "007"  # the first of a folder that is away
        assert f"digit-0/{named}.png cannot be read (" in str(caught.value)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_is_summed_as_it_was_read_also_one_that_is_none(index, workers):
    (index.root / index.keys[5]).write_bytes(b"no image")
    (index.root / index.keys[6]).write_bytes(b"")
    renderer = ViewRenderer(index, ViewPolicy(), 3, 24, "bicubic", check_size=24)
    rows = np.array([9, 5, 30, 6, 2])
    requests = [Request(rows, (0, 1))]
    with rendered(renderer, requests, LoaderSettings(workers), largest=(2, 5)) as loader:
        found = next(loader)
    expected = [google_crc32c.value((index.root / index.keys[r]).read_bytes()) for r in rows]
    assert found.sources_B.dtype == np.uint32
    assert found.sources_B.tolist() == expected
    assert list(found.unreadable) == [5, 6]


def test_a_shard_or_tar_that_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    for data in (tmp_path, f"wds/{tmp_path}"):
        with pytest.raises(ImageUnavailable if data == tmp_path else ImagesError, match=r"a\.tar"):
            index_images(data)


def test_an_empty_file_is_unreadable_not_unavailable(index):
    (index.root / index.keys[0]).write_bytes(b"")
    found = render_here(CenterRenderer(index, 24, 1.0, "bicubic"), Request(np.arange(1), (0,)))
    assert "empty" in found.unreadable[0]


def test_a_tar_that_the_disk_does_not_give_is_named(tmp_path):
    (tmp_path / "data.tar").symlink_to("/proc/self/mem")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").symlink_to("/proc/self/mem")
    for data in (tmp_path / "data.tar", f"wds/{tmp_path / 'shards'}"):
        with pytest.raises(ImagesError, match=r"\.tar"):
            index_images(data)
