import itertools
import shutil

import numpy as np
import pytest
import torch
from small import (
    build_teacher,
    cache_document,
    cache_recipe,
    closed,
    fill_cache,
    rewrite_manifest,
    to_toml,
)

from teacher_cache.cache.blocks import (
    Block,
    committed_blocks,
    missing_blocks,
    read_entry,
    withdraw_block,
    write_block,
)
from teacher_cache.cache.cache import absent_rows, open_cache
from teacher_cache.cache.slab import read_block, read_slab
from teacher_cache.errors import CacheError
from teacher_cache.filling.fill import fill
from teacher_cache.filling.opening import open_or_create
from teacher_cache.filling.tiles import missing_tiles, take_tiles, unclaimed_tiles
from teacher_cache.images.index import ImagesError, index_images
from teacher_cache.pixels.render import decode_image, pixel_crc, pixel_libraries, render
from teacher_cache.record import TopK, checked_rows
from teacher_cache.storage.disk import Disk
from teacher_cache.storage.ledger import BlockId
from teacher_cache.teacher.answers import top_k
from teacher_cache.views.view import sample_view


def slabs(cache):
    return [read_slab(cache, view) for view in range(cache.view_count)]


def assert_same_records(one, other):
    for a, b in zip(slabs(one), slabs(other), strict=True):
        for name in ("ids_NK", "logp_NK", "tail_NT", "check"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.fixture
def started(scans, tmp_path):
    """A cache just created, with what fills it."""
    recipe, index = cache_recipe(), index_images(scans / "train")
    teacher = build_teacher(recipe, index)
    return open_or_create(Disk(tmp_path / "cache"), recipe, index, teacher), index, teacher, recipe


def test_a_record_is_the_teachers_answer_to_the_view_of_the_image(filled, scans):
    recipe, index = cache_recipe(), index_images(scans / "train")
    teacher = build_teacher(recipe, index)
    slab = read_slab(filled, 2)
    for row in (0, 31, 32, 89):
        view = sample_view(recipe.views, seed=0, key=index.keys[row], view=2)
        pixels = render(decode_image(index.read(row)), view, size=32)
        expected = top_k(
            teacher.logits(torch.from_numpy(pixels)[None]), k=2, temperatures=(1.0, 2.0)
        )
        assert slab.ids_NK[row].tolist() == expected.ids_BK[0].tolist()
        np.testing.assert_allclose(slab.logp_NK[row], expected.logp_BK[0], atol=2e-3)
        np.testing.assert_allclose(slab.tail_NT[row], expected.tail_BT[0], atol=2e-3)


def test_check_rows_hold_the_crc_of_the_pixels_the_teacher_saw(filled, scans):
    recipe, index = cache_recipe(), index_images(scans / "train")
    for view in range(3):
        check = read_slab(filled, view).check
        for entry, row in enumerate(checked_rows(view, range(len(index))).tolist()):
            seen = sample_view(recipe.views, seed=0, key=index.keys[row], view=view)
            pixels = render(decode_image(index.read(row)), seen, size=32)
            assert check[entry] == pixel_crc(pixels)


@pytest.mark.parametrize(
    ("views_per_tile", "workers", "world_size"), [(1, 0, 1), (3, 2, 1), (2, 0, 2), (2, 1, 5)]
)
def test_tiles_workers_and_ranks_change_no_record(
    filled, started, views_per_tile, workers, world_size
):
    cache, index, teacher, _ = started
    recipe = cache_recipe(storage__views_per_tile=views_per_tile, loader__workers=workers)
    for rank in reversed(range(world_size)):
        for _ in fill(cache, index, teacher, recipe, rank=rank, world_size=world_size):
            pass
        if rank:  # ranks started later still see the tiles that this one left
            recipe = cache_recipe(storage__views_per_tile=views_per_tile)
    while missing_blocks(cache):  # a rank's share is cut anew on every start
        for _ in fill(cache, index, teacher, recipe):
            pass
    assert_same_records(cache, filled)


def test_tiles_are_what_the_ledger_lacks_lower_views_first(started):
    cache = started[0]
    tiles = [(tile.shard, tile.views) for tile in missing_tiles(cache, 2)]
    assert tiles == [
        (0, (0, 1)), (1, (0, 1)), (2, (0, 1)), (0, (2,)), (1, (2,)), (2, (2,)),
    ]  # fmt: skip


def test_progress_counts_records_and_closing_commits_the_tile_at_hand_and_tells_of_it(
    filled, started
):
    cache, index, teacher, recipe = started
    job = fill(cache, index, teacher, recipe)
    seen = list(itertools.islice(job, 4))
    assert [p.done for p in seen] == [0, 32, 64, 96]  # 16 rows x 2 views a batch
    assert {p.total for p in seen} == {270}
    left = closed(job)
    assert (left.done, left.own, left.resumed) == (128, 128, 0)
    entries = [read_entry(cache, block) for block in committed_blocks(cache.place)]
    assert left.metrics == {"bytes": sum(file.size for entry in entries for file in entry.files)}
    assert missing_blocks(cache) == [
        block for block in cache.blocks() if block not in {
            BlockId(0, 0), BlockId(1, 0), BlockId(0, 1), BlockId(1, 1)
        }
    ]  # fmt: skip
    rest = list(fill(cache, index, teacher, recipe))
    assert (rest[0].resumed, rest[-1].done) == (128, 270)
    assert_same_records(cache, filled)


def test_a_full_cache_has_nothing_left_to_do(filled, scans):
    recipe, index = cache_recipe(), index_images(scans / "train")
    assert list(fill(filled, index, build_teacher(recipe, index), recipe))[1:] == []


def test_the_ledger_says_who_computed_a_block(filled):
    producer = read_entry(filled, BlockId(0, 0)).producer
    assert producer["torch"] == torch.__version__
    assert producer["device"]
    assert producer["host"]


def test_a_teacher_of_as_many_classes_as_are_kept_has_no_tail(scans, tmp_path):
    cache = fill_cache(tmp_path / "cache", scans / "train", cache_recipe(topk__k=3))
    slab = read_slab(cache, 0)
    assert np.isneginf(slab.tail_NT).all()
    np.testing.assert_allclose(np.exp(slab.logp_NK.astype("f8")).sum(axis=1), 1, atol=2e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"views__seed": 1}, "views.seed: 0 in the cache, 1 asked for"),
        ({"topk__k": 1}, "topk.k: 2 in the cache, 1 asked for"),
        ({"teacher__seed": 5}, "teacher weights: .* in the cache"),
        ({"views__count": 2}, "holds 3 views, the recipe asks for 2"),
    ],
)
def test_another_recipe_into_the_same_cache_is_refused(filled, scans, changes, words):
    recipe, index = cache_recipe(**changes), index_images(scans / "train")
    with pytest.raises(CacheError, match=words):
        open_or_create(filled.place, recipe, index, build_teacher(recipe, index))


def test_other_pixel_libraries_go_on_only_if_asked_and_only_with_the_same_pixels(
    cli, own_cache, own_scans, tmp_path
):
    rewrite_manifest(own_cache, pixel_libraries={**pixel_libraries(), "pillow": "1.0"})
    recipe = tmp_path / "cache.toml"
    recipe.write_text(to_toml(cache_document()))
    grow = ["cache-teacher", recipe, "--data", own_scans / "train", "--out", own_cache]
    done = cli(*grow, "--views", 4, check=1)
    assert "pillow 1.0 in the cache" in done.stderr
    assert "complete" in cli(*grow, "--views", 4, "--accept-pixel-libraries").stdout
    key = open_cache(Disk(own_cache)).index.keys[32]  # checked in view 0
    replaced = (own_scans / "train" / open_cache(Disk(own_cache)).index.keys[70]).read_bytes()
    (own_scans / "train" / key).write_bytes(replaced)
    done = cli(*grow, "--views", 5, "--accept-pixel-libraries", check=1)
    assert "its bytes are not those that the teacher read" in done.stderr
    assert open_cache(Disk(own_cache)).view_count == 4


def test_another_data_set_into_the_same_cache_is_refused(filled, own_scans):
    next((own_scans / "train" / "digit-1").iterdir()).unlink()
    recipe, index = cache_recipe(), index_images(own_scans / "train")
    with pytest.raises(CacheError, match="image index: .* in the cache"):
        open_or_create(filled.place, recipe, index, build_teacher(recipe, index))


def test_more_classes_kept_than_there_are_is_refused_before_anything_is_made(scans, tmp_path):
    recipe, index = cache_recipe(topk__k=4), index_images(scans / "train")
    with pytest.raises(CacheError, match="topk.k is 4, the teacher has 3 classes: set topk.k = 3"):
        open_or_create(Disk(tmp_path / "cache"), recipe, index, build_teacher(recipe, index))
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_with_more_views_appends_them(own_cache, scans):
    before = read_slab(open_cache(Disk(own_cache)), 1)
    cache = fill_cache(own_cache, scans / "train", cache_recipe(views__count=5))
    assert cache.view_count == 5
    np.testing.assert_array_equal(read_slab(cache, 1).logp_NK, before.logp_NK)
    assert missing_blocks(cache) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_the_job_and_names_the_file(own_scans, tmp_path, workers):
    victim = own_scans / "train" / "digit-1" / "010.png"
    victim.write_bytes(victim.read_bytes()[:60])
    recipe = cache_recipe(loader__workers=workers)
    with pytest.raises(ImagesError, match=r"digit-1/010.png: .*images.skip_unreadable = true"):
        fill_cache(tmp_path / "cache", own_scans / "train", recipe)
    committed = len(open_cache(Disk(tmp_path / "cache")).blocks()) - len(
        missing_blocks(open_cache(Disk(tmp_path / "cache")))
    )
    assert committed == 2  # the tile before it, shard 0 of views 0 and 1


def test_skipped_images_are_marked_absent_and_leave_the_others_alone(own_scans, filled, tmp_path):
    victim = own_scans / "train" / "digit-1" / "010.png"
    victim.write_bytes(b"")
    row = index_images(own_scans / "train").keys.index("digit-1/010.png")
    recipe = cache_recipe(images__skip_unreadable=True)
    cache = fill_cache(tmp_path / "cache", own_scans / "train", recipe)
    assert absent_rows(cache) == {row}
    slab, whole = read_slab(cache, 0), read_slab(filled, 0)
    assert slab.absent_rows == {row}
    assert slab.ids_NK[row].tolist() == [65_535, 65_535]
    assert np.isnan(slab.logp_NK[row]).all()
    others = np.arange(90) != row
    np.testing.assert_array_equal(slab.logp_NK[others], whole.logp_NK[others])


def test_a_stopped_job_continues_when_told_to_skip(own_scans, tmp_path):
    (own_scans / "train" / "digit-1" / "010.png").write_bytes(b"")
    with pytest.raises(ImagesError):
        fill_cache(tmp_path / "cache", own_scans / "train", cache_recipe())
    recipe = cache_recipe(images__skip_unreadable=True)
    cache = fill_cache(tmp_path / "cache", own_scans / "train", recipe)
    assert missing_blocks(cache) == []


def test_a_class_map_puts_labels_and_ids_in_one_space(scans, tmp_path):
    ids = {"digit-0": 4, "digit-1": 1, "digit-2": 6}
    index = index_images(scans / "train", class_ids=ids)
    recipe = cache_recipe(images__class_map=str(tmp_path / "map.json"))
    teacher = build_teacher(recipe, index)
    cache = open_or_create(Disk(tmp_path / "cache"), recipe, index, teacher)
    assert cache.manifest.class_count == 7
    assert sorted(set(open_cache(cache.place).index.labels.tolist())) == [1, 4, 6]


def test_no_temporary_file_stays(filled):
    names = [path.name for path in filled.place.root.parent.rglob("*")]
    assert not [name for name in names if name.endswith(".tmp")]
    shutil.copytree(filled.place.root, filled.place.root.parent / "copy", dirs_exist_ok=True)


def test_every_tile_says_where_its_time_went(started):
    cache, index, teacher, recipe = started
    tiles = len(missing_tiles(cache, recipe.storage.views_per_tile))
    told = [p.metrics for p in fill(cache, index, teacher, recipe) if p.metrics]
    *metrics, last = [dict(metrics) for metrics in told]
    written = [metrics.pop("bytes") for metrics in metrics]
    entries = [read_entry(cache, block) for block in committed_blocks(cache.place)]
    assert last == {"bytes": sum(file.size for entry in entries for file in entry.files)}
    assert written == sorted(written)
    assert len(metrics) == tiles
    for shares in metrics:
        assert set(shares) == {"data_wait_share", "teacher_share", "write_share"}
        assert all(0 <= share <= 1 for share in shares.values())
        assert sum(shares.values()) < 1.001
    assert sum(shares["teacher_share"] for shares in metrics) > 0


@pytest.mark.parametrize("replaced", [False, True])
def test_a_cache_that_is_taken_away_while_it_is_filled_stops_the_fill(scans, tmp_path, replaced):
    root, recipe = tmp_path / "cache", cache_recipe()
    index = index_images(scans / "train")
    teacher = build_teacher(recipe, index)
    job = fill(open_or_create(Disk(root), recipe, index, teacher), index, teacher, recipe)
    next(job)
    root.rename(tmp_path / "moved")
    words = "was moved or removed while it was filled"
    if replaced:
        open_or_create(Disk(root), recipe, index, teacher)
        words = "was replaced by another cache while it was filled"
    else:
        root.mkdir()
    with pytest.raises(CacheError, match=words):
        list(job)
    assert not list(root.glob("ledger/[0-9]*/*.json"))


def test_a_tile_of_which_a_block_is_committed_is_still_its_writers(own_cache):
    """Else another process takes it as well, or says that no living writer has it."""
    cache, recipe = open_cache(Disk(own_cache)), cache_recipe()
    slab = read_block(cache, BlockId(0, 0))
    for view in (0, 1):
        withdraw_block(cache, BlockId(view, 0), "test")
    (taken,) = itertools.islice(take_tiles(cache, recipe, 0, 1), 1)
    assert taken.views == (0, 1)
    topk = TopK(slab.ids_NK, slab.logp_NK, slab.tail_NT)
    write_block(cache, Block(BlockId(0, 0), topk, slab.check), {})
    assert len(missing_blocks(cache)) == 1
    assert unclaimed_tiles(cache, 2) == []
    assert list(take_tiles(cache, recipe, 0, 1)) == []
    taken.claim.release()
    (tile,) = unclaimed_tiles(cache, 2)
    assert (tile.shard, tile.views) == (0, (1,))
