"""One view, one picture: whatever renders it, however many at a time."""

import multiprocessing
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pictures import encoded, picture

from teacher_cache.images.index import index_images
from teacher_cache.loading.loader import LoaderSettings, rendered
from teacher_cache.loading.renderers import Request, ViewRenderer
from teacher_cache.pixels.engine import PILLOW
from teacher_cache.pixels.render import decode_image, pixel_crc, render
from teacher_cache.views.policy import ViewPolicy
from teacher_cache.views.view import sample_view

POLICY = ViewPolicy(num_ops=3, op_probability=0.7, erase=0.3)
SIZE = 48
KINDS = (
    ("JPEG", {"quality": 92}), ("JPEG", {"quality": 70, "subsampling": "4:4:4"}),
    ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {"lossless": True}),
)  # fmt: skip


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "class"
    folder.mkdir()
    for row in range(40):
        kind, options = KINDS[row % len(KINDS)]
        shape = (20 + row * 7 % 190, 17 + row * 11 % 150)
        data = encoded(picture(*shape, seed=row), kind, **options)
        (folder / f"{row:03}.{kind.lower()}").write_bytes(data)
    return index_images(folder.parent)


def crc_of(index, row, number, engine=None):
    view = sample_view(POLICY, seed=5, key=index.keys[row], view=number)
    image = decode_image(index.read(row), views=[view], engine=engine)
    return pixel_crc(render(image, view, size=SIZE, engine=engine))


def crcs_of(index, numbers):
    return [crc_of(index, row, number) for row in range(len(index)) for number in numbers]


def by_loader(index, numbers, *, rows, group, workers):
    """CRCs [row][number] through the loader: `rows` x `group` pictures a request."""
    renderer = ViewRenderer(index, POLICY, 5, SIZE, "bicubic", SIZE)
    requests = [
        Request(np.arange(at, min(at + rows, len(index))), tuple(numbers[g : g + group]))
        for at in range(0, len(index), rows)
        for g in range(0, len(numbers), group)
    ]
    crcs = {}
    for result in rendered(renderer, requests, LoaderSettings(workers), largest=(group, rows)):
        for g, number in enumerate(result.request.views):
            for b, row in enumerate(result.request.rows.tolist()):
                crcs[row, number] = zlib.crc32(result.pixels_GBHWC[g, b].numpy().tobytes())
    return [crcs[row, number] for row in range(len(index)) for number in numbers]


def require_identity(index, views):
    numbers = list(range(views))
    expected = crcs_of(index, numbers)
    for rows, group, workers in ((1, 1, 0), (7, 3, 1), (40, views, 2), (13, 5, 2)):
        assert by_loader(index, numbers, rows=rows, group=group, workers=workers) == expected
    for threads in (2, 5):
        with ThreadPoolExecutor(threads) as pool:
            pairs = [(row, number) for row in range(len(index)) for number in numbers]
            assert list(pool.map(lambda pair: crc_of(index, *pair), pairs)) == expected
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        halves = pool.starmap(crcs_of, [(index, numbers[::2]), (index, numbers[1::2])])
    by_half = [iter(half) for half in halves]
    assert [next(by_half[number % 2]) for _ in range(len(index)) for number in numbers] == expected
    some = [(row, number) for row in range(len(index)) for number in numbers[:3]]
    pillows = [crc_of(index, row, number, PILLOW) for row, number in some]
    assert pillows == [expected[row * views + number] for row, number in some]


def test_pixels_are_the_same_for_any_workers_threads_batches_and_processes(index):
    require_identity(index, views=5)


@pytest.mark.slow
def test_10_000_pictures_are_the_same_for_any_workers_threads_batches_and_processes(index):
    require_identity(index, views=250)
