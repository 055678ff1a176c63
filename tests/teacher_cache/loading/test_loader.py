import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from repository import REPOSITORY
from slow_file import SlowFile
from small import CPU

from teacher_cache.errors import UserError
from teacher_cache.images.index import index_images
from teacher_cache.loading.loader import LoaderSettings, rendered
from teacher_cache.loading.queue import render_here
from teacher_cache.loading.renderers import CenterRenderer, Request, ViewRenderer
from teacher_cache.loading.workers import WorkerDied
from teacher_cache.views.policy import ViewPolicy

SIZE = 24


@pytest.fixture(scope="module")
def renderer(scans):
    index = index_images(scans / "train")
    return ViewRenderer(index, ViewPolicy(), 3, SIZE, "bicubic", check_size=16)


def requests_of(renderer, rows=37, views=(1, 2, 5), count=6):
    """Requests of different sizes, rows in no order."""
    random = np.random.default_rng(0)
    return [
        Request(
            random.permutation(len(renderer.index))[: rows - number % 30], views[: 1 + number % 3]
        )
        for number in range(count)
    ]


def same(one, other):
    assert one.request.views == other.request.views
    np.testing.assert_array_equal(one.request.rows, other.request.rows)
    assert torch.equal(one.pixels_GBHWC, other.pixels_GBHWC)
    assert list(one.checks.items()) == list(other.checks.items())
    assert list(one.unreadable.items()) == list(other.unreadable.items())


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_requests_are_rendered_in_order_and_to_the_same_pixels_by_any_number_of_workers(
    renderer, workers
):
    requests = requests_of(renderer)
    expected = [render_here(renderer, request) for request in requests]
    with rendered(renderer, requests, LoaderSettings(workers), largest=(3, 37)) as loader:
        for one in expected:
            same(next(loader), one)
        with pytest.raises(StopIteration):
            next(loader)
    assert any(one.checks for one in expected)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_start_as_fresh_processes_render_the_same(renderer, method):
    requests = requests_of(renderer)
    settings = LoaderSettings(2, start_method=method)
    with rendered(renderer, requests, settings, largest=(3, 37)) as loader:
        for request, found in zip(requests, loader, strict=True):
            same(found, render_here(renderer, request))


def test_a_fresh_worker_needs_no_torch():
    code = "import sys, teacher_cache.loading.workers; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_unreadable_images_are_named_and_black(own_scans):
    index = index_images(own_scans / "train")
    broken = own_scans / "train" / index.keys[4]
    broken.write_bytes(broken.read_bytes()[:40])
    (own_scans / "train" / index.keys[7]).write_bytes(b"")
    renderer = CenterRenderer(index, SIZE, 1.0, "bicubic")
    requests = [Request(np.arange(10), (0,))] * 9  # so that each place was written before
    with rendered(renderer, requests, LoaderSettings(2), largest=(1, 10)) as loader:
        for found in loader:
            assert list(found.unreadable) == [4, 7]
            assert "the file is empty" in found.unreadable[7]
            assert not found.pixels_GBHWC[0, [4, 7]].any()
            assert found.pixels_GBHWC[0, 5].any()


def test_pixels_do_not_change_as_long_as_anything_refers_to_them(renderer):
    requests = requests_of(renderer, count=40)
    kept = []
    with rendered(renderer, requests, LoaderSettings(2), largest=(3, 37)) as loader:
        for number, found in enumerate(loader):
            if number in (0, 3, 17):
                kept.append((number, found.pixels_GBHWC[0][2:5].permute(0, 3, 1, 2)))
    gc.collect()
    for number, part in kept:
        expected = render_here(renderer, requests[number]).pixels_GBHWC[0, 2:5]
        assert torch.equal(part, expected.permute(0, 3, 1, 2))


@pytest.mark.parametrize("rows", [10, 3])  # as many as were announced, and fewer
def test_a_reader_that_keeps_every_batch_gets_them_all_unchanged(renderer, rows):
    renderer = CenterRenderer(renderer.index, 128, 1.0, "bicubic")
    requests = [Request(np.arange(first, first + rows), (0,)) for first in range(12)]
    settings = LoaderSettings(2, memory_mb=1)  # two slots
    with rendered(renderer, requests, settings, largest=(1, 10)) as loader:
        hoard = list(loader)
    for request, found in zip(requests, hoard, strict=True):
        same(found, render_here(renderer, request))


@pytest.mark.parametrize(("memory_mb", "slots"), [(1, 2), (2, 4), (100, 6)])
def test_the_memory_keeps_to_its_bound_and_to_what_is_of_use(renderer, memory_mb, slots):
    settings = LoaderSettings(1, memory_mb=memory_mb)
    renderer = CenterRenderer(renderer.index, 128, 1.0, "bicubic")
    with rendered(renderer, [], settings, largest=(1, 10)) as loader:  # 0.49 MB
        worker = multiprocessing.active_children()[0]
        maps = Path(f"/proc/{worker.pid}/maps").read_text().splitlines()
        line = next(line for line in maps if "memfd:retort-loader" in line)
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        assert last - first == slots * 491_520 <= memory_mb * 10**6
        assert list(loader) == []


def test_a_request_larger_than_announced_is_refused(renderer):
    requests = [Request(np.arange(5), (0,))]
    with pytest.raises(ValueError, match="more than the 8192 bytes of the largest"):
        rendered(renderer, requests, LoaderSettings(1), largest=(1, 4))
    assert not multiprocessing.active_children()


def test_two_batches_must_fit_into_the_memory(renderer):
    with pytest.raises(UserError, match=r"are 31 MB, loader.memory_mb allows 30: set it to 32 or"):
        rendered(renderer, [], LoaderSettings(1, memory_mb=30), largest=(100, 90))


def test_requests_are_taken_no_further_ahead_than_asked(renderer):
    taken = []

    def requests():
        for number in range(30):
            taken.append(number)
            yield Request(np.arange(4), (number,))

    settings = LoaderSettings(1, ahead=3)
    with rendered(renderer, requests(), settings, largest=(1, 4)) as loader:
        assert len(taken) == 3
        for number in range(5):
            next(loader)
            assert len(taken) <= number + 4


def test_the_time_that_the_reader_waited_is_counted(tmp_path, renderer, slow):
    index, release = slow
    slow_renderer = CenterRenderer(index, SIZE, 1.0, "bicubic")
    requests = [Request(np.array([row]), (0,)) for row in range(4)]
    with rendered(slow_renderer, requests, LoaderSettings(1), largest=(1, 1)) as loader:
        next(loader)
        before = loader.waited_s
        assert not loader.ready(0.3)
        assert 0.3 <= loader.waited_s - before < 3
        release()
        assert loader.ready(10)
        assert len(list(loader)) == 3


@pytest.fixture
def slow(own_scans):
    """An index whose second image is not given by its disk, and what lets it come."""
    index = index_images(own_scans / "train")
    file = SlowFile(own_scans / "train" / index.keys[1])
    yield index, file.release
    file.close()


def test_while_one_worker_waits_for_a_slow_image_the_other_goes_on(slow):
    index, release = slow
    renderer = CenterRenderer(index, SIZE, 1.0, "bicubic")
    requests = [Request(np.arange(first, first + 2), (0,)) for first in range(0, 12, 2)]
    settings = LoaderSettings(2, ahead=6)
    with rendered(renderer, requests, settings, largest=(1, 2)) as loader:
        assert not loader.ready(1.0)
        done = [queued.marks for queued in loader._queue.queued]
        assert sum(marks is not None for order in done for marks in order) >= 5
        release()
        assert [found.request.rows[0] for found in loader] == [0, 2, 4, 6, 8, 10]


def test_closing_does_not_wait_for_an_image_that_never_comes(slow):
    index, _ = slow
    renderer = CenterRenderer(index, SIZE, 1.0, "bicubic")
    with rendered(
        renderer, [Request(np.arange(4), (0,))], LoaderSettings(2), largest=(1, 4)
    ) as loader:
        assert not loader.ready(0.2)
        started = time.monotonic()
    assert time.monotonic() - started < 60
    assert not multiprocessing.active_children()


def test_batches_outlive_the_loader_and_a_forgotten_loader_its_workers_do_not(renderer):
    loader = rendered(renderer, requests_of(renderer), LoaderSettings(2), largest=(3, 37))
    found = next(loader)
    before = found.pixels_GBHWC.clone()
    assert len(multiprocessing.active_children()) == 2
    del loader
    gc.collect()
    assert not multiprocessing.active_children()
    assert torch.equal(found.pixels_GBHWC, before)


class BrokenRenderer(CenterRenderer):
    """A renderer with a programming error."""

    __slots__ = ()

    def render_into(self, request, pixels_GBHWC):
        return pixels_GBHWC[99]


def test_an_error_in_a_worker_is_raised_with_its_traceback(renderer):
    broken = BrokenRenderer(renderer.index, SIZE, 1.0, "bicubic")
    requests = [Request(np.arange(4), (0,))]
    with (
        rendered(broken, requests, LoaderSettings(1), largest=(1, 4)) as loader,
        pytest.raises(RuntimeError, match=r"in loader worker 0:\n(?s:.*)IndexError"),
    ):
        next(loader)
    assert not multiprocessing.active_children()


def test_asking_for_pinned_memory_works_with_and_without_a_device(renderer):
    requests = requests_of(renderer, count=3)
    settings = LoaderSettings(1, pinned=True)
    with rendered(renderer, requests, settings, largest=(3, 37)) as loader:
        for request, found in zip(requests, loader, strict=True):
            same(found, render_here(renderer, request))
            assert found.pixels_GBHWC.is_pinned() == torch.cuda.is_available()


@pytest.mark.gpu
def test_pinned_batches_reach_the_device_unchanged(renderer):
    requests = requests_of(renderer, count=60)
    device = torch.device("cuda")
    there = []
    settings = LoaderSettings(2, pinned=True)
    with rendered(renderer, requests, settings, largest=(3, 37)) as loader:
        for found in loader:
            assert found.pixels_GBHWC.is_pinned()
            there.append(found.pixels_GBHWC.to(device, non_blocking=True))
    for request, pixels in zip(requests, there, strict=True):
        assert torch.equal(pixels.to(CPU), render_here(renderer, request).pixels_GBHWC)


@pytest.mark.parametrize(
    ("number", "advice"),
    [(signal.SIGKILL, "ran out of memory"), (signal.SIGXCPU, "run it again")],
)
def test_a_workers_death_names_its_signal_what_it_was_at_and_what_to_do(slow, number, advice):
    index, _ = slow
    renderer = CenterRenderer(index, SIZE, 1.0, "bicubic")
    requests = [Request(np.arange(8), (0,))] * 2
    with rendered(renderer, requests, LoaderSettings(2), largest=(1, 8)) as loader:
        assert not loader.ready(0.5)  # the first worker waits for the second image
        first = min(multiprocessing.active_children(), key=lambda process: process.name)
        os.kill(first.pid, number)
        with pytest.raises(WorkerDied) as caught:
            next(loader)
    message = str(caught.value)
    assert f"loader worker 0 of 2 (process {first.pid}) was killed by {number.name}" in message
    assert f"while it had {index.root / index.keys[0]} and 3 more at hand" in message
    assert advice in message
    assert not multiprocessing.active_children()
