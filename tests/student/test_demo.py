"""The demo's scans, its commands, and the one that runs beside the others; no training here."""

from pathlib import Path

import pytest
from typer.main import get_command

from cli import app
from student.demo import Step, run, steps, write_digits
from student.recipe import StudentRecipe
from teacher_cache.errors import UserError
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.recipes.document import load_recipe


def test_students_have_twenty_scans_a_class_of_their_teachers_and_none_that_validates(tmp_path):
    write_digits(tmp_path / "digits")
    train, few, val = (
        {file.relative_to(tmp_path / "digits" / part) for file in files}
        for part in ("train", "few", "val")
        for files in [(tmp_path / "digits" / part).glob("*/*.png")]
    )
    assert (len(train), len(few), len(val)) == (1_297, 200, 500)
    assert few < train
    assert not train & val
    assert {sum(file.parent.name == f"digit-{label}" for file in few) for label in range(10)} == {
        20
    }


def test_every_command_of_the_demo_parses_and_its_recipes_are_shipped(tmp_path):
    group = get_command(app)
    kinds = {
        "cache-teacher": (CacheRecipe, "teacher_cache"),
        "train-student": (StudentRecipe, "student"),
    }
    for name, *arguments in (step.arguments for step in steps(tmp_path)):
        group.commands[name].make_context(name, list(arguments)).close()
        if name in kinds:
            kind, package = kinds[name]
            assert load_recipe(Path(arguments[0]), kind, package=package)


def test_alone_and_distilled_differ_in_alpha_and_in_nothing_else(tmp_path):
    alone, distilled = (
        step.arguments for step in steps(tmp_path) if step.arguments[1] == "digits-student"
    )
    out = alone.index("--out") + 1
    assert alone[:out] == distilled[:out]
    assert (alone[out + 1 :], distilled[out + 1 :]) == (("--set", "distill.alpha=0"), ())


def test_what_runs_beside_is_waited_for_and_its_last_line_shown(tmp_path):
    program, done = tmp_path / "program.py", tmp_path / "done"
    program.write_text("import sys, pathlib; pathlib.Path(sys.argv[1]).touch(); print('a\\nlast')")
    said, called = [], []

    def call(arguments):
        called.append(arguments)
        assert arguments != ("reads",) or done.exists()

    work = [Step((str(done),), beside=True), Step(("other",)), Step(("reads",), joins=True)]
    run(work, call, said.append, program=program, log=tmp_path / "log")
    assert called == [("other",), ("reads",)]
    assert said[-2:] == ["\nlast", "\n$ cli.py reads"]


def test_a_command_beside_that_fails_ends_the_demo_with_its_words(tmp_path):
    program = tmp_path / "program.py"
    program.write_text("raise SystemExit('no room left')")
    work = [Step(("x",), beside=True), Step(("reads",), joins=True)]
    with pytest.raises(UserError, match="exit code 1: no room left"):
        run(work, lambda _: None, lambda _: None, program=program, log=tmp_path / "log")
