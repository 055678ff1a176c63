"""A step from the cache beside the same step with the teacher in the loop."""

import json

import numpy as np
import pytest
from small import CPU, build_teacher, cache_recipe, fill_cache, student_document, to_toml

from student.data.training_data import replayed_data
from student.recipe import StudentRecipe
from student.results.online import Online, Source
from teacher_cache.images.index import index_images
from teacher_cache.recipes.document import parse_recipe


def online(scans, cache, recipe, **changes):
    index = index_images(scans / "train")
    changes = {"run__threads": 1, **changes}
    student = parse_recipe(student_document(**changes), StudentRecipe, source="test")
    data = replayed_data(student, index, cache)
    return Online(student, data, build_teacher(recipe, index), recipe, CPU)


@pytest.fixture
def whole(scans, tmp_path):
    recipe = cache_recipe(topk__k=3)
    return recipe, fill_cache(tmp_path / "cache", scans / "train", recipe)


@pytest.mark.parametrize("size", [32, 40])
@pytest.mark.parametrize("tail", ["uniform", "bucket"])
def test_with_every_class_kept_all_three_sources_teach_the_same(scans, whole, tail, size):
    """But for float16: a log-probability is off by 2^-11 of itself, so is its gradient."""
    recipe, cache = whole
    compared = online(scans, cache, recipe, distill__tail=tail, student__size=size)
    found = compared.at_equal_weights()
    assert found[Source.DENSE].gradient_difference == 0
    for source in (Source.CUT, Source.CACHED):
        assert found[source].loss == pytest.approx(found[Source.DENSE].loss, rel=2e-3)
        assert found[source].gradient_cosine > 0.99999
        assert found[source].gradient_difference < 5e-3
    assert found[Source.CUT] == found[Source.CACHED]  # the same record, live and stored


def test_a_record_of_fewer_classes_is_cut_as_the_cache_cut_it(scans, filled):
    found = online(scans, filled, cache_recipe()).at_equal_weights()
    assert found[Source.CUT] == found[Source.CACHED] != found[Source.DENSE]
    assert 0.5 < found[Source.CACHED].gradient_cosine < 1


def test_the_command_says_losses_gradients_and_seconds_and_draws_both_curves(
    cli, scans, filled, tmp_path
):
    pytest.importorskip("matplotlib")
    (tmp_path / "student.toml").write_text(to_toml(student_document()))
    document = cache_recipe().model_dump(mode="json", exclude_none=True)
    del document["teacher"]["ensemble"], document["images"]
    (tmp_path / "cache.toml").write_text(to_toml(document))
    asked = (
        "compare-online", "student.toml", "--teacher", "cache.toml", "--data", scans / "train",
        "--cache", filled.place.root,
    )  # fmt: skip
    facts = json.loads(cli(*asked, "--steps", "4", "--out", "curves.png", "--json").stdout)
    assert [line["step"] for line in facts["losses"]] == [1, 2, 3, 4]
    assert all(np.isfinite(line["cached"]) and line["dense"] > 0 for line in facts["losses"])
    assert facts["cached: loss"] == pytest.approx(facts["losses"][0]["cached"], rel=1e-4)
    assert facts["dense: seconds a step"] > 0
    assert (tmp_path / "curves.png").stat().st_size > 1000
    text = cli(*asked).stdout
    assert "cached: gradient, cosine" in text
    other = ("--teacher-set", "teacher.seed=7")
    assert "made otherwise: teacher weights" in cli(*asked, *other, check=1).stderr
