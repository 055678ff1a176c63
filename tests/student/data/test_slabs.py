"""Training on a cache that is still being filled."""

import time

import pytest
from commands import start
from small import (
    CPU,
    build_teacher,
    cache_document,
    cache_recipe,
    fill_cache,
    rewrite_manifest,
    student_document,
    to_toml,
)

from student.data.run_plan import plan_run
from student.data.slabs import Waiting, prefetched_slabs
from student.data.training_data import replayed_data
from student.ranks import Ranks
from student.recipe import StudentRecipe
from student.runs.checkpoint import load_checkpoint
from student.training.start import start_or_continue
from student.training.train import train
from teacher_cache.cache.cache import open_cache
from teacher_cache.errors import MissingRecords, ReplayRefused
from teacher_cache.filling.fill import fill
from teacher_cache.filling.opening import open_or_create
from teacher_cache.images.index import index_images, rebase
from teacher_cache.pixels.render import pixel_libraries
from teacher_cache.recipes.document import parse_recipe
from teacher_cache.storage.disk import Disk


def forget(root, view):
    """Take one view's blocks out of the ledger."""
    for path in (root / "ledger" / str(view)).iterdir():
        path.unlink()


def recipe_of(**changes):
    return parse_recipe(student_document(**changes), StudentRecipe, source="test")


def training(tmp_path, scans, cache, **options):
    recipe = recipe_of()
    data = replayed_data(recipe, rebase(cache.index, scans / "train"), cache, **options)
    validation = index_images(scans / "val")
    run = start_or_continue(tmp_path / "run", recipe, data, validation)
    return train(run, data, validation, device=CPU)


@pytest.fixture
def write_recipes(tmp_path):
    (tmp_path / "cache.toml").write_text(to_toml(cache_document(views__count=1)))
    (tmp_path / "student.toml").write_text(to_toml(student_document()))
    return tmp_path / "cache.toml", tmp_path / "student.toml"


@pytest.mark.kill
@pytest.mark.slow
def test_a_student_follows_a_cache_whose_later_views_are_appended_by_another_process(
    cli, write_recipes, scans, filled, tmp_path
):
    cache_toml, student_toml = write_recipes
    fill_cache(tmp_path / "cache", scans / "train", cache_recipe(views__count=1))
    arguments = ["cache-teacher", cache_toml, "--data", scans / "train", "--out", "cache"]
    student = ["train-student", student_toml, "--data", scans / "train", "--val", scans / "val"]
    follower = start(tmp_path, [*student, "--cache", "cache", "--out", "run", "--follow"])
    assert any("waiting_for_view 1" in line for line in follower.stderr)  # or it has ended
    cli(*arguments, "--views", 3)
    _, error = follower.communicate(timeout=900)
    assert follower.returncode == 0, error
    cli(*student, "--cache", filled.place.root, "--out", "whole")
    one, other = (load_checkpoint(tmp_path / name / "last.pt") for name in ("run", "whole"))
    for name, weights in one.model.items():
        assert weights.numpy().tobytes() == other.model[name].numpy().tobytes()


def test_a_student_gives_up_when_the_cache_stands_still_and_says_what_to_do(
    cli, write_recipes, own_cache, scans
):
    forget(own_cache, 1)
    _, recipe = write_recipes
    started = time.monotonic()
    error = cli(
        "train-student", recipe, "--cache", own_cache, "--data", scans / "train",
        "--val", scans / "val", "--out", "run", "--follow", "--follow-timeout-s", 1, check=1,
    ).stderr  # fmt: skip
    assert 1 < time.monotonic() - started < 60
    assert "view 1 is not filled, and no block was committed for 1 s: start cache-teacher" in error
    assert error.count("error: ") == 1


def test_without_follow_an_unfilled_view_is_an_error_at_once(own_cache, scans, tmp_path):
    forget(own_cache, 0)
    job = training(tmp_path, scans, open_cache(Disk(own_cache)))
    with pytest.raises(MissingRecords, match="view 0, rows 0-31: not filled yet"):
        list(job)


def test_a_student_that_waits_can_be_stopped_and_keeps_its_state(own_cache, scans, tmp_path):
    forget(own_cache, 1)
    job = training(tmp_path, scans, open_cache(Disk(own_cache)), follow_timeout_s=600.0)
    waiting = next(p for p in job if "waiting_for_view" in p.metrics)
    assert (waiting.done, waiting.metrics) == (5, {"waiting_for_view": 1.0})
    started = time.monotonic()
    job.close()
    assert time.monotonic() - started < 60
    assert load_checkpoint(tmp_path / "run" / "last.pt").step == 5


@pytest.mark.parametrize("count", [1, 2])
def test_a_view_to_be_appended_is_waited_for(own_cache, scans, count):
    student, cache = recipe_of(schedule__epochs=4), open_cache(Disk(own_cache))
    data = replayed_data(
        student, rebase(cache.index, scans / "train"), cache, follow_timeout_s=60.0
    )
    plan = plan_run(student, data, Ranks(count - 1, count))
    slabs = prefetched_slabs(data, plan, range(2, 4))
    assert next(s for s in slabs if not isinstance(s, Waiting)).view == 2
    assert isinstance(next(slabs), Waiting)
    recipe, index = cache_recipe(views__count=4), index_images(scans / "train")
    open_or_create(Disk(own_cache), recipe, index, build_teacher(recipe, index))
    assert isinstance(next(slabs), Waiting)
    fill_cache(own_cache, scans / "train", recipe)
    slab = next(s for s in slabs if not isinstance(s, Waiting))
    assert slab.view == 3
    assert len(slab.ids_NK) == (90 if count == 1 else 5 * 16 // 2)


def with_other_pillow(root):
    """What a cache looks like that was filled with another release of Pillow."""
    rewrite_manifest(root, pixel_libraries={**pixel_libraries(), "pillow": "1.0"})
    return open_cache(Disk(root))


def test_other_pixel_libraries_are_accepted_only_if_the_pixels_are_the_same(
    own_cache, own_scans, tmp_path
):
    cache = with_other_pillow(own_cache)
    with pytest.raises(ReplayRefused, match=r"pillow 1\.0 in the cache.*--accept-pixel-libraries"):
        training(tmp_path, own_scans, cache)
    job = training(tmp_path, own_scans, cache, accept_pixel_libraries=True)
    assert next(job).total == 15
    job.close()
    victim = own_scans / "train" / cache.index.keys[32]  # checked in view 0
    victim.write_bytes((own_scans / "train" / cache.index.keys[70]).read_bytes())
    with pytest.raises(ReplayRefused, match="its bytes are not those that the teacher read"):
        training(tmp_path, own_scans, cache, accept_pixel_libraries=True)


def test_images_that_turn_out_unreadable_later_stop_a_run_that_may_start_again(own_scans, tmp_path):
    (own_scans / "train" / "digit-2" / "029.png").write_bytes(b"no image")
    recipe = cache_recipe(images__skip_unreadable=True)
    index = index_images(own_scans / "train")
    teacher = build_teacher(recipe, index)
    cache = open_or_create(Disk(tmp_path / "cache"), recipe, index, teacher)
    early = training(
        tmp_path, own_scans, open_cache(Disk(tmp_path / "cache")), follow_timeout_s=60.0
    )
    for _ in fill(cache, index, teacher, recipe):
        pass
    with pytest.raises(MissingRecords, match="unreadable after this run .*: run the same command"):
        list(early)
    list(training(tmp_path, own_scans, open_cache(Disk(tmp_path / "cache")), follow_timeout_s=60.0))
    assert load_checkpoint(tmp_path / "run" / "last.pt").step == 15
