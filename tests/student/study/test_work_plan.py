"""Which teachers, caches and runs a study comes to."""

from pathlib import Path

import pytest

from student.study.rows import Study
from student.study.work_plan import Place, plan_study
from teacher_cache.errors import UserError
from teacher_cache.recipes.document import parse_recipe

ROWS = [
    {"name": "alone", "set": ["distill.alpha=0"]},
    {"name": "distilled", "seeds": 2},
    {"name": "k", "set": ["topk.k=3"]},
    {"name": "longer", "set": ["schedule.epochs=50"]},
    {"name": "one view", "set": ["views.count=1", "views.reuse=true"]},
    {"name": "larger views", "set": ["views.size=40", "student.size=32"]},
]


def plan(tmp_path, *, changes=None, **asked):
    document = {"title": "t", "cache": "digits", "student": "digits-student", "rows": ROWS}
    study = parse_recipe(document | (changes or {}), Study, source="test")
    place = Place("train", "val", tmp_path / "out", tmp_path / "shared", "cpu")
    return plan_study(study, Path("test"), place, **asked)


def test_rows_of_one_cache_recipe_share_a_cache_with_the_views_of_the_longest(tmp_path):
    found = plan(tmp_path)
    cache = {run.row: run.cache for run in found.runs}
    assert cache["alone"] == cache["distilled"] == cache["longer"]
    assert len(set(cache.values())) == 4
    views = {job.folder: job.views for job in found.caches}
    assert views[cache["alone"]] == 50
    assert views[cache["k"]] == 40
    assert views[cache["one view"]] == 1  # epoch e shows view e mod V, so V is the row's own
    assert views[cache["larger views"]] == 40


def test_a_change_reaches_the_recipe_that_knows_the_key(tmp_path):
    found = plan(tmp_path, changes={"set": ["loader.workers=3"]}, overrides=["views.seed=5"])
    by_row = {run.row: run for run in found.runs}
    caches = {job.folder: job for job in found.caches}
    assert caches[by_row["k"].cache].recipe.topk.k == 3
    assert by_row["one view"].recipe.views.reuse
    assert by_row["larger views"].recipe.student.size == 32
    assert caches[by_row["larger views"].cache].recipe.views.size == 40
    for run in found.runs:
        assert run.recipe.loader.workers == caches[run.cache].recipe.loader.workers == 3
        assert caches[run.cache].recipe.views.seed == 5


def test_seeds_differ_in_the_runs_seed_alone(tmp_path):
    one, other = (run for run in plan(tmp_path).runs if run.row == "distilled")
    assert (one.recipe.run.seed, other.recipe.run.seed) == (0, 1)
    assert one.cache == other.cache
    assert one.recipe.model_copy(update={"run": other.recipe.run}) == other.recipe
    assert len([run for run in plan(tmp_path, seeds=3).runs if run.row == "k"]) == 3


def test_chosen_rows_bring_their_base(tmp_path):
    assert {run.row for run in plan(tmp_path, rows=["k"]).runs} == {"alone", "k"}
    with pytest.raises(UserError, match="no row nope in this study, expected some of: alone, d"):
        plan(tmp_path, rows=["nope"])


def test_a_budget_shortens_runs_and_their_caches_but_no_teacher(tmp_path):
    teacher = {"teachers": {"own": {"student": "digits-teacher"}}, "teacher": "own"}
    whole, short = plan(tmp_path, changes=teacher), plan(tmp_path, changes=teacher, budget=0.25)
    assert {run.recipe.schedule.epochs for run in short.runs} == {10, 12}
    assert max(job.views for job in short.caches) == 12
    assert short.teachers == whole.teachers
    assert [job.folder for job in short.caches] == [job.folder for job in whole.caches]


def test_a_studys_own_teacher_fills_its_caches(tmp_path):
    teachers = {"own": {"student": "digits-teacher"}, "other": {"student": "digits-teacher"}}
    found = plan(tmp_path, changes={"teachers": teachers, "teacher": "own"})
    (teacher,) = found.teachers  # none is trained that no row asks for
    assert teacher.recipe.distill.alpha == 0
    for job in found.caches:
        assert job.recipe.teacher.checkpoint == teacher.file
        assert job.recipe.teacher.model == teacher.recipe.student.model
