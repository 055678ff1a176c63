"""A study's file: what it may say, and the studies that ship with Retort."""

from pathlib import Path

import pytest
from typer.main import get_command

from cli import app
from student.study.rows import Study, folder_name, load_study
from student.study.work_plan import Place, plan_study
from teacher_cache.recipes.document import RecipeError, parse_recipe, shipped_recipes

SHIPPED = sorted(shipped_recipes("student", folder="studies"))


def study(**changes):
    rows = [{"name": "alone", "set": ["distill.alpha=0"]}, {"name": "distilled"}]
    document = {"title": "t", "cache": "digits", "student": "digits-student", "rows": rows}
    return parse_recipe(document | changes, Study, source="test")


def test_a_row_is_compared_with_its_own_base_or_the_studys_or_the_first():
    rows = [{"name": "a"}, {"name": "b"}, {"name": "c", "base": "b"}]
    found = study(rows=rows)
    assert [found.base_of(row).name for row in found.rows] == ["a", "a", "b"]
    found = study(rows=rows, base="b")
    assert [found.base_of(row).name for row in found.rows] == ["b", "b", "b"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": "nope"}, "base 'nope' is no row, expected one of alone, distilled"),
        ({"teacher": "nope"}, "teacher 'nope' is not among [teachers] (none)"),
        ({"rows": [{"name": "a, b"}, {"name": "a b"}]}, "rows share a folder: a b, a, b"),
        ({"rows": []}, "rows: "),
        ({"rows": [{"name": "a", "set": ["distill.alpha"]}]}, "rows.0.set.0"),
        ({"sedes": 3}, "sedes: unknown key; did you mean 'seeds'?"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused_in_words(changes, said):
    with pytest.raises(RecipeError, match=".") as error:
        study(**changes)
    assert said in str(error.value)


def test_a_rows_folder_is_a_plain_name():
    assert folder_name("tau 2, alpha 0.5") == "tau-2-alpha-0.5"
    assert folder_name("../..") == "row"


def test_a_study_that_does_not_exist_names_those_that_ship():
    with pytest.raises(RecipeError, match="one of the shipped studies: .*small"):
        load_study(Path("nope"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_study_can_be_planned_and_its_commands_parse(name, tmp_path):
    place = Place("train", "val", tmp_path, tmp_path, "cpu")
    plan = plan_study(load_study(Path(name)), Path(name), place)
    assert plan.runs
    assert plan.caches
    group = get_command(app)
    teachers = [part for job in plan.teachers for part in (job.train, job.export)]
    for command, *arguments in (
        *teachers,
        *(job.arguments for job in plan.caches),
        *(job.arguments for job in plan.runs),
    ):
        group.commands[command].make_context(command, list(arguments)).close()
    folders = [job.folder for job in plan.runs]
    assert len(set(folders)) == len(folders)
