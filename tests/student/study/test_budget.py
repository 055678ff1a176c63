"""A run at a fraction of its length."""

import pytest
from small import student_document

from student.recipe import StudentRecipe
from student.study.budget import changes_of
from teacher_cache.recipes.document import parse_recipe


def recipe(**changes):
    return parse_recipe(student_document(**changes), StudentRecipe, source="test")


def test_the_whole_budget_changes_nothing():
    assert changes_of(recipe(), 1.0) == []


def test_epochs_warmup_and_the_averages_horizon_shrink_alike():
    long = recipe(schedule__epochs=600, schedule__warmup_epochs=20, ema__decay=0.9999)
    found = dict(change.split("=") for change in changes_of(long, 0.05))
    assert found["schedule.epochs"] == "30"
    assert float(found["schedule.warmup_epochs"]) == pytest.approx(1.0)
    # the average covers 1 / (1 - decay) steps: 10,000 of 600 epochs, 500 of 30
    assert 1 / (1 - float(found["ema.decay"])) == pytest.approx(500, rel=1e-6)


def test_a_budget_too_small_for_an_average_keeps_none_and_one_epoch_is_left():
    found = changes_of(recipe(schedule__epochs=10, ema__decay=0.9), 0.01)
    assert found == ["schedule.epochs=1", "ema.decay=0"]
    shortest = recipe(schedule__epochs=10, schedule__warmup_epochs=9)
    changes = dict(change.split("=") for change in changes_of(shortest, 0.1))
    assert float(changes["schedule.warmup_epochs"]) < int(changes["schedule.epochs"])
