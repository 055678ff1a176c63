import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from caches import block_of, filled_cache, index_of, manifest_of, new_cache
from repository import REPOSITORY
from small import cache_recipe

from teacher_cache.cache.blocks import Block, missing_blocks, write_block
from teacher_cache.cache.cache import absent_rows, append_views, create_cache, open_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.cache.teacher_sample import read_sample
from teacher_cache.errors import (
    CacheError,
    DamagedRecords,
    ImagesChanged,
    MissingRecords,
    ReplayRefused,
)
from teacher_cache.storage.disk import Disk
from teacher_cache.storage.ledger import BlockId
from teacher_cache.teacher.answers import TopK
from teacher_cache.verification.verify import verify

GOLDEN = REPOSITORY / "tests" / "golden" / "cache"


def test_what_was_written_is_read_back_bit_for_bit(tmp_path):
    cache = filled_cache(tmp_path / "cache")
    for view in range(3):
        slab = read_slab(open_cache(cache.place), view)
        for shard in range(3):
            rows, block = cache.rows(shard), block_of(cache, BlockId(view, shard))
            part = slice(rows.start, rows.stop)
            np.testing.assert_array_equal(slab.ids_NK[part], block.topk.ids_BK)
            np.testing.assert_array_equal(slab.logp_NK[part], block.topk.logp_BK)
            np.testing.assert_array_equal(slab.tail_NT[part], block.topk.tail_BT)
            np.testing.assert_array_equal(slab.check[shard : shard + 1], block.check)
    assert slab.ids_NK.dtype == np.uint16
    assert (slab.logp_NK.dtype, slab.tail_NT.dtype, slab.check.dtype) == ("f2", "f2", "u4")


def test_past_65_535_classes_ids_are_32_bits_wide(tmp_path):
    cache = new_cache(tmp_path / "cache", rows=32, classes=70_000)
    rows = np.full((32, 2), 69_999, np.uint32)
    topk = TopK(rows, np.zeros((32, 2), "f2"), np.zeros((32, 2), "f2"))
    write_block(cache, Block(BlockId(0, 0), topk, np.zeros(1, np.uint32)), {})
    assert read_slab(cache, 0).ids_NK.max() == 69_999


def test_opening_gives_back_manifest_and_index(tmp_path):
    cache = open_cache(new_cache(tmp_path / "cache").place)
    index = index_of(90)
    assert cache.index.keys == index.keys
    assert cache.index.labels.tolist() == index.labels.tolist()
    assert cache.index.class_ids == index.class_ids
    assert cache.manifest == manifest_of(cache_recipe(), index)
    assert (cache.view_count, cache.layout.rows_per_shard) == (3, 32)


def test_a_hole_is_an_error_that_names_view_and_rows_never_zeros(tmp_path):
    cache = new_cache(tmp_path / "cache")
    for block in missing_blocks(cache):
        if block != BlockId(1, 2):
            write_block(cache, block_of(cache, block), {})
    assert missing_blocks(cache) == [BlockId(1, 2)]
    read_slab(cache, 0)
    with pytest.raises(MissingRecords, match="view 1, rows 64-89: not filled yet"):
        read_slab(cache, 1)
    with pytest.raises(MissingRecords, match="holds views 0-2, asked for view 3"):
        read_slab(cache, 3)


@pytest.mark.parametrize("name", ["ids", "logp", "tail", "check"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "removed"])
def test_a_damaged_shard_is_refused_and_the_block_can_be_written_anew(tmp_path, name, damage):
    cache = filled_cache(tmp_path / "cache")
    path = cache.place.root / name / ("c.1.2" if name == "check" else "c.1.2.0")
    data = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
        path.write_bytes({"flipped": flipped, "truncated": data[:-1], "emptied": b""}[damage])
    with pytest.raises(
        DamagedRecords, match=rf"view 1, rows 64-89: {name}/c.1.2.*verify-cache .* --repair"
    ):
        read_slab(cache, 1)
    read_slab(cache, 0)
    (cache.place.root / "ledger" / "1" / "2.json").unlink()
    assert missing_blocks(cache) == [BlockId(1, 2)]
    write_block(cache, block_of(cache, BlockId(1, 2)), {})
    assert path.read_bytes() == data
    read_slab(cache, 1)


def test_every_flipped_byte_of_a_shard_is_found(tmp_path):
    cache = filled_cache(tmp_path / "cache", views__count=1)
    for path in sorted(cache.place.root.glob("*/c.0.0*")):
        data = path.read_bytes()
        for at in range(0, len(data), 7):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises(DamagedRecords):
                read_slab(cache, 0)
        path.write_bytes(data)
    read_slab(cache, 0)


def test_a_committed_block_is_never_written_again(tmp_path):
    cache = filled_cache(tmp_path / "cache")
    before = read_slab(cache, 0).logp_NK
    write_block(cache, block_of(cache, BlockId(0, 0), seed=99), {})
    np.testing.assert_array_equal(read_slab(cache, 0).logp_NK, before)


def test_a_block_of_the_wrong_length_is_refused(tmp_path):
    cache = new_cache(tmp_path / "cache")
    block = block_of(cache, BlockId(0, 0))
    with pytest.raises(ValueError, match="got 32 records, expected 26"):
        write_block(cache, Block(BlockId(0, 2), block.topk, block.check), {})


def test_appended_views_leave_what_is_there_and_are_holes_until_filled(tmp_path):
    cache = filled_cache(tmp_path / "cache")
    before = read_slab(cache, 2)
    grown = append_views(cache, 5)
    assert grown.view_count == 5
    assert [block.view for block in missing_blocks(grown)] == [3, 3, 3, 4, 4, 4]
    np.testing.assert_array_equal(read_slab(grown, 2).logp_NK, before.logp_NK)
    with pytest.raises(MissingRecords, match="view 3, rows 0-31"):
        read_slab(grown, 3)
    write_block(grown, block_of(grown, BlockId(3, 0)), {})


def test_a_crash_while_views_are_appended_leaves_a_cache_that_opens(tmp_path):
    cache = filled_cache(tmp_path / "cache")
    described = {path: path.read_bytes() for path in cache.place.root.glob("*/zarr.json")}
    append_views(cache, 5)
    for path, data in described.items():  # the crash came before the descriptions were written
        path.write_bytes(data)
    assert open_cache(cache.place).view_count == 5
    assert append_views(open_cache(cache.place), 4).view_count == 5
    assert zarr.open_array(cache.place.root / "check", mode="r").shape == (5, 3)


def test_absent_rows_are_listed_once_a_shard_of_rows(tmp_path):
    recipe, index = cache_recipe(), index_of(90)
    cache = create_cache(Disk(tmp_path / "cache"), manifest_of(recipe, index), index)
    cache.sources.commit(1, np.arange(32, dtype=np.uint32), frozenset({33, 40}), {})
    assert absent_rows(open_cache(cache.place)) == {33, 40}


def test_a_block_of_images_that_nobody_named_is_refused(tmp_path):
    recipe, index = cache_recipe(), index_of(90)
    cache = create_cache(Disk(tmp_path / "cache"), manifest_of(recipe, index), index)
    with pytest.raises(ValueError, match="no source entry names the images of shard 0"):
        write_block(cache, block_of(cache, BlockId(0, 0)), {})


def test_a_writer_that_read_other_images_is_refused(tmp_path):
    cache = new_cache(tmp_path / "cache")
    other = open_cache(cache.place)
    crc = np.array(other.rows(1), np.uint32) * 7
    assert other.sources.commit(1, crc, frozenset(), {}).rows == range(32, 64)
    crc[5] += 1
    with pytest.raises(ImagesChanged, match=r"1 images of rows 32-63 \(first: row 37\)"):
        other.sources.commit(1, crc, frozenset(), {})
    with pytest.raises(ImagesChanged, match="first: row 40"):
        crc[5] -= 1
        other.sources.commit(1, crc, frozenset({40}), {})


def test_a_folder_that_is_no_cache_is_refused_and_left_alone(tmp_path):
    with pytest.raises(CacheError, match="no cache there; fill one with"):
        open_cache(Disk(tmp_path))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.txt").write_text("mine")
    with pytest.raises(CacheError, match="is not a cache"):
        new_cache(tmp_path / "cache")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache"]
    assert (tmp_path / "cache" / "thesis.txt").read_text() == "mine"
    zarr.create_group(store=tmp_path / "group", zarr_format=3)
    with pytest.raises(CacheError, match="a Zarr group, but not a cache"):
        open_cache(Disk(tmp_path / "group"))


def test_creating_twice_opens_the_first(tmp_path):
    first = filled_cache(tmp_path / "cache")
    assert missing_blocks(new_cache(tmp_path / "cache")) == []
    assert first.place.root == tmp_path / "cache"


@pytest.mark.parametrize("name", ["keys", "labels", "classes", "class_ids"])
def test_a_damaged_image_index_is_refused(tmp_path, name):
    cache = new_cache(tmp_path / "cache")
    path = cache.place.root / name / "c.0"
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(CacheError, match=r"image index (is damaged|cannot be read)"):
        open_cache(cache.place)


def test_a_damaged_manifest_and_another_format_are_refused(tmp_path):
    cache = new_cache(tmp_path / "cache")
    path = cache.place.root / "zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["retort"]["class_count"] = 4
    path.write_text(json.dumps(document))
    with pytest.raises(CacheError, match="the manifest is damaged"):
        open_cache(cache.place)
    document["attributes"]["retort"]["format_version"] = 1
    path.write_text(json.dumps(document))
    with pytest.raises(CacheError, match="has cache format 1, this release reads format 2: fill"):
        open_cache(cache.place)
    path.write_text("{")
    with pytest.raises(CacheError, match="zarr.json cannot be read"):
        open_cache(cache.place)


def test_another_pixel_library_is_refused_with_both_versions(tmp_path):
    manifest = new_cache(tmp_path / "cache").manifest
    manifest.require_same_pixels("pillow-1", {"pillow": "13.0.0"})
    words = "pillow 13.0.0 in the cache, 13.0.1 here: install the cache's versions"
    with pytest.raises(ReplayRefused, match=words):
        manifest.require_same_pixels("pillow-1", {"pillow": "13.0.1"})
    with pytest.raises(ReplayRefused, match="pixel_engine pillow-1 in the cache, pillow-2 here"):
        manifest.require_same_pixels("pillow-2", {"pillow": "13.0.0"})
    with pytest.raises(ReplayRefused, match="webp absent in the cache, 1.4 here"):
        manifest.require_same_pixels("pillow-1", {"pillow": "13.0.0", "webp": "1.4"})


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
def test_plain_zarr_reads_the_records(tmp_path):
    cache = filled_cache(tmp_path / "cache")
    ids = zarr.open_array(cache.place.root / "ids", mode="r")
    assert (ids.shape, ids.shards, ids.chunks) == ((3, 90, 2), (1, 32, 2), (1, 32, 2))
    np.testing.assert_array_equal(ids[1], read_slab(cache, 1).ids_NK)


def test_a_cache_written_by_an_earlier_release_reads_the_same(tmp_path):
    """The golden cache was written when the format was fixed; it must be readable for ever."""
    root = Path(shutil.copytree(GOLDEN, tmp_path / "cache"))
    cache = open_cache(Disk(root))
    expected = json.loads((GOLDEN.parent / "cache.json").read_text())
    assert list(cache.index.keys) == expected["keys"]
    slab = read_slab(cache, 1)
    assert slab.ids_NK.tolist() == expected["ids"]
    for name, values in (("logp", slab.logp_NK), ("tail", slab.tail_NT)):
        stated = np.array(expected[name], np.float64)  # null is NaN: row 3 is absent
        np.testing.assert_array_equal(values.astype(np.float64), stated)
    assert slab.check.tolist() == expected["check"]
    assert [crc for shard in range(2) for crc in cache.sources.of(shard).crc] == expected["source"]
    assert absent_rows(cache) == {3}
    assert read_sample(cache).rows.tolist() == [0, 7, 21]
    assert verify(cache).is_sound
