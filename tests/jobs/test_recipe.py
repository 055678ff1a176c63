from pathlib import Path

import pytest
from repository import REPOSITORY
from small import cache_document, cache_recipe, student_document, to_toml

from student.recipe import StudentRecipe
from teacher_cache.recipes.cache_recipe import CacheRecipe
from teacher_cache.recipes.document import RecipeError, load_recipe, override, parse_recipe


def load(tmp_path, document, *overrides, kind=CacheRecipe):
    path = tmp_path / "recipe.toml"
    path.write_text(document if isinstance(document, str) else to_toml(document))
    package = "teacher_cache" if kind is CacheRecipe else "student"
    return load_recipe(path, kind, overrides=overrides, package=package)


def test_only_the_teachers_model_and_the_number_of_views_have_no_default(tmp_path):
    recipe = load(tmp_path, '[teacher]\nmodel = "resnet18"\n[views]\ncount = 2\n')
    assert recipe.topk.k == 20
    assert recipe.topk.temperatures == (1.0, 2.0, 4.0)
    assert recipe.storage.rows_per_shard == 32_768
    with pytest.raises(RecipeError, match=r"teacher\.model: missing.*views\.count: missing"):
        load(tmp_path, "[teacher]\n[views]\n")


def test_an_override_changes_one_key_and_is_read_as_toml_or_as_a_word(tmp_path):
    recipe = load(
        tmp_path,
        cache_document(),
        "topk.k=3",
        "teacher.model=resnet18",
        "topk.temperatures=[1.0, 3.0]",
        "teacher.kwargs.drop_rate=0.1",
    )
    assert (recipe.topk.k, recipe.teacher.model) == (3, "resnet18")
    assert recipe.topk.temperatures == (1.0, 3.0)
    assert recipe.teacher.kwargs == {"drop_rate": 0.1}
    assert recipe.views.count == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("topk", "expected section.key=value"),
        ("k=3", "expected section.key=value"),
        ("topk.kk=3", "topk.kk: unknown key; did you mean 'k'"),
        ("topks.k=3", "topks: unknown key; did you mean 'topk'"),
        ("topk.k=many", "topk.k: .*valid integer.*got 'many'"),
        ("topk.k=0", r"topk.k: .*greater than 0.*got 0"),
        ("topk.k.x=3", ": k is a value, expected a section"),
        ("views.flip=2", "views.flip: .*less than or equal to 1"),
        ("storage.rows_per_shard=100", "expected a multiple of 32, and of 4096 above 4096"),
        ("storage.rows_per_shard=6144", "expected a multiple of 32, and of 4096 above 4096"),
        ("topk.temperatures=[1.0, 1.0]", "expected one or more, each once"),
        ("topk.temperatures=[]", "expected one or more, each once"),
        ("topk.temperatures=[1e6]", "a temperature of 1000000.0, expected 0.01 to 100"),
        ("topk.temperatures=[1e-3]", "a temperature of 0.001, expected 0.01 to 100"),
        ("topk.temperatures=[inf]", "finite"),
        ("teacher.kwargs.scriptable=False", "expected TOML: true, false"),
    ],
)
def test_a_bad_override_names_key_value_and_remedy(tmp_path, override, words):
    with pytest.raises(RecipeError, match=words):
        load(tmp_path, cache_document(), override)


def test_a_missing_recipe_names_the_shipped_ones_and_broken_toml_its_line(tmp_path):
    with pytest.raises(
        RecipeError, match="recipes: beitv2-base-imagenet, beitv2-base-imagenet-temperatures, di"
    ):
        load_recipe(tmp_path / "nowhere.toml", CacheRecipe, package="teacher_cache")
    with pytest.raises(RecipeError, match=r"not TOML: .*line 1"):
        load(tmp_path, "[teacher\n")
    with pytest.raises(RecipeError, match="not TOML"):
        (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
        load_recipe(tmp_path / "binary.toml", CacheRecipe, package="teacher_cache")


def test_shipped_recipes_are_found_by_name_and_say_what_the_paper_says():
    teacher = load_recipe(Path("beitv2-base-imagenet"), CacheRecipe, package="teacher_cache")
    assert teacher.teacher.model.startswith("beitv2_base")
    assert (teacher.teacher.pretrained, teacher.views.count, teacher.topk.k) == (True, 300, 10)
    student = load_recipe(Path("ghostnetv3-1.0x-imagenet"), StudentRecipe, package="student")
    # GhostNetV3 (arXiv 2404.11202), sec. 4.1
    assert student.optimizer.name == "lamb"
    assert (student.optimizer.lr, student.optimizer.batch_size) == (0.005, 2048)
    assert (student.schedule.epochs, student.schedule.min_lr) == (600, 0.0)
    assert (student.distill.alpha, student.distill.temperature) == (0.5, 1.0)
    assert student.ema.decay == 0.9999
    for package, kind in (("teacher_cache", CacheRecipe), ("student", StudentRecipe)):
        for file in (REPOSITORY / package / "recipes").glob("*.toml"):
            load_recipe(Path(file.stem), kind, package=package)


def test_the_digest_covers_what_changes_a_record_and_nothing_else(tmp_path):
    digest = cache_recipe().digest()
    for changes in (
        {"views__count": 9},
        {"storage__views_per_tile": 1},
        {"loader__workers": 3},
        {"images__skip_unreadable": True},
        {"images__max_unreadable": 0.5},
        {"images__class_order": "timm"},  # the index has a digest of its own
        {"teacher__allow_poor": True},
    ):
        assert cache_recipe(**changes).digest() == digest, changes
    for changes in (
        {"teacher__model": "test_vit"},
        {"teacher__batch_size": 8},
        {"teacher__seed": 1},
        {"teacher__kwargs": {"drop_rate": 0.1}},
        {"teacher__precision": "bf16"},
        {"views__seed": 1},
        {"views__size": 64},
        {"views__flip": 0.25},
        {"views__interpolation": "bilinear"},
        {"topk__k": 1},
        {"topk__temperatures": [1.0]},
        {"storage__rows_per_shard": 64},
    ):
        assert cache_recipe(**changes).digest() != digest, changes


LOADING = [
    "checkpoint_path", "hf_hub_id", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict",
    "pretrained_filter_fn", "cache_dir", "weights", "weights_backbone", "model_dir", "url", "file",
]  # fmt: skip


@pytest.mark.parametrize("name", LOADING)
@pytest.mark.parametrize("section", ["teacher", "student"])
def test_arguments_that_load_code_or_weights_are_refused_in_favour_of_a_checkpoint(section, name):
    with pytest.raises(RecipeError, match=rf"kwargs: got the argument {name}.*teacher.checkpoint"):
        with_kwargs(section, {name: "x"})


@pytest.mark.parametrize("section", ["teacher", "student"])
@pytest.mark.parametrize("value", [{"file": "x"}, [1, {"file": "x"}], float("nan"), None, object()])
def test_arguments_are_plain_values(section, value):
    with pytest.raises(RecipeError, match="kwargs: got model_args = .*expected a string, a finite"):
        with_kwargs(section, {"model_args": value})


def test_plain_arguments_are_kept_and_a_student_may_have_timms_own_weights():
    plain = {"img_size": [32, 32], "drop_rate": 0.1, "act_layer": "gelu", "qkv_bias": True}
    assert with_kwargs("teacher", plain).teacher.kwargs == plain
    assert with_kwargs("student", {"pretrained": True}).student.kwargs == {"pretrained": True}
    with pytest.raises(RecipeError, match="got the argument pretrained,"):
        with_kwargs("teacher", {"pretrained": True})
    with pytest.raises(RecipeError, match="got pretrained = 'yes', expected true or false"):
        with_kwargs("student", {"pretrained": "yes"})


@pytest.mark.parametrize("name", ["hf-hub:a/b", "hf_hub:a/b", "local-dir:/tmp/x", "a/b", "C:\\x"])
def test_a_model_is_a_registered_name_without_scheme_or_path(name):
    for kind, document in (
        (CacheRecipe, cache_document(teacher__model=name)),
        (CacheRecipe, cache_document(teacher__ensemble=[{"model": name}])),
        (StudentRecipe, student_document(student__model=name)),
        (StudentRecipe, student_document(student__model=f"torchvision/{name}")),
    ):
        with pytest.raises(RecipeError, match="model: expected the name of a timm model without"):
            parse_recipe(document, kind, source="test")


def with_kwargs(section, kwargs):
    if section == "teacher":
        return parse_recipe(cache_document(teacher__kwargs=kwargs), CacheRecipe, source="test")
    document = student_document(student__kwargs=kwargs)
    return parse_recipe(document, StudentRecipe, source="test")


def test_the_shipped_teacher_computes_features_in_bf16_and_others_in_fp32():
    shipped = load_recipe(Path("beitv2-base-imagenet"), CacheRecipe, package="teacher_cache")
    assert shipped.teacher.precision == "bf16"
    assert cache_recipe().teacher.precision == "fp32"
    with pytest.raises(RecipeError, match="precision"):
        cache_recipe(teacher__precision="fp16")


def test_a_teacher_has_one_source_of_weights():
    recipe = cache_document(teacher__checkpoint="weights.safetensors")
    assert parse_recipe(recipe, CacheRecipe, source="test").teacher.pretrained is False
    del recipe["teacher"]["pretrained"]
    assert parse_recipe(recipe, CacheRecipe, source="test").teacher.pretrained is False
    recipe["teacher"]["pretrained"] = True
    with pytest.raises(RecipeError, match="expected one source"):
        parse_recipe(recipe, CacheRecipe, source="test")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer__micro_batch": 5}, "expected a divisor of batch_size = 16"),
        ({"distill__alpha": 1.5}, "distill.alpha"),
        ({"distill__tail": "buckets"}, "distill.tail: .*'bucket'"),
        ({"distill__temperature": 0.0}, "distill.temperature"),
        ({"distill__temperature": 1e6}, "distill.temperature: .* 1000000.0, expected 0.01 to 100"),
        ({"ema__decay": 1.0}, "ema.decay"),
        ({"reparam__branches": 0}, "reparam.branches"),
        ({"views__sice": 3}, "views.sice: unknown key; did you mean 'size'"),
    ],
)
def test_a_bad_student_recipe_names_the_key(tmp_path, changes, words):
    with pytest.raises(RecipeError, match=words):
        load(tmp_path, student_document(**changes), kind=StudentRecipe)


def test_the_runs_identity_leaves_out_what_changes_no_weight():
    def identity(**changes):
        return parse_recipe(student_document(**changes), StudentRecipe, source="test").identity()

    same = identity()
    assert identity(loader__workers=5) == same
    assert identity(run__log_every_steps=9) == same
    assert identity(evaluation__batch_size=9) == same
    assert identity(run__threads=2) != same
    assert identity(optimizer__micro_batch=8) != same
    assert identity(run__seed=1) != same


ENSEMBLE = """
[teacher]
model = "resnet18"
[[teacher.ensemble]]
model = "resnet34"
checkpoint = "34.safetensors"
[[teacher.ensemble]]
model = "resnet50"
[views]
count = 2
"""


def test_an_ensemble_is_a_list_of_tables_and_part_of_the_digest(tmp_path):
    recipe = load(tmp_path, ENSEMBLE)
    assert recipe.teacher.name == "resnet18 + resnet34 + resnet50"
    assert [m.pretrained for m in recipe.teacher.ensemble] == [False, True]
    settings = recipe.data_settings()["teacher"]["ensemble"]
    assert [m["model"] for m in settings] == ["resnet34", "resnet50"]
    assert all("checkpoint" not in m for m in settings)  # a path: the weights have a digest
    other = load(tmp_path, ENSEMBLE.replace("resnet50", "resnet101"))
    assert other.digest() != recipe.digest()
    with pytest.raises(RecipeError, match=r"ensemble\.0\.modle: unknown key; did you mean 'model'"):
        load(tmp_path, ENSEMBLE.replace('model = "resnet34"', 'modle = "resnet34"'))


def test_a_single_teachers_digest_knows_nothing_of_ensembles():
    assert "ensemble" not in cache_recipe().data_settings()["teacher"]


def test_a_recipe_of_the_other_job_is_told_in_one_sentence(tmp_path):
    with pytest.raises(
        RecipeError,
        match=r"recipe.toml: this is a cache recipe, for cache-teacher and plan-cache \(it has "
        r"\[teacher\] and no \[student\]\), expected a student recipe, for train-student$",
    ):
        load(tmp_path, cache_document(), kind=StudentRecipe)
    with pytest.raises(RecipeError, match=r"this is a student recipe, for train-student"):
        load(tmp_path, student_document())
    with pytest.raises(RecipeError, match=r"teacher: unknown key"):
        load(tmp_path, student_document(), "teacher.model=resnet18", kind=StudentRecipe)


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_numbers_that_a_digest_cannot_tell_apart_are_refused_everywhere(value):
    for kind, change in (
        (CacheRecipe, f"teacher.kwargs.drop_rate={value}"),
        (CacheRecipe, f"views.magnitude_std={value}"),
        (StudentRecipe, f"student.kwargs.drop_rate={value}"),
        (StudentRecipe, f"optimizer.kwargs.eps={value}"),
        (StudentRecipe, f"optimizer.lr={value}"),
    ):
        document = cache_document() if kind is CacheRecipe else student_document()
        override(document, change, kind)
        with pytest.raises(RecipeError, match="finite"):
            parse_recipe(document, kind, source="test")


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (StudentRecipe, "schedule.epochs=true"),
        (StudentRecipe, "distill.alpha=true"),
        (StudentRecipe, "run.threads=true"),
        (StudentRecipe, "views.num_ops=true"),
        (StudentRecipe, "reparam.branches=true"),
        (CacheRecipe, "views.count=true"),
        (CacheRecipe, "topk.temperatures=[true]"),
        (CacheRecipe, "views.magnitude=false"),
    ],
)
def test_true_and_false_are_no_numbers(tmp_path, kind, change):
    document = cache_document() if kind is CacheRecipe else student_document()
    value = "false" if "false" in change else "true"
    with pytest.raises(RecipeError, match=f"{change.split('=')[0]}: got {value}, expected a num"):
        load(tmp_path, document, change, kind=kind)
    load(tmp_path, student_document(), "views.reuse=true", kind=StudentRecipe)
    with pytest.raises(RecipeError, match=r"teacher.ensemble.seed: got true, expected a number"):
        load(tmp_path, to_toml(cache_document()) + '[[teacher.ensemble]]\nmodel="a"\nseed=true\n')


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (StudentRecipe, "run.seed"),
        (StudentRecipe, "views.seed"),
        (CacheRecipe, "views.seed"),
        (CacheRecipe, "teacher.seed"),
    ],
)
def test_a_seed_is_what_toml_can_hold_and_torch_takes(tmp_path, kind, key):
    document = cache_document() if kind is CacheRecipe else student_document()
    load(tmp_path, document, f"{key}={2**63 - 1}", kind=kind)
    for seed in (-1, 2**63, 10**30):
        with pytest.raises(RecipeError, match=rf"{key}: .*got {seed}"):
            load(tmp_path, document, f"{key}={seed}", kind=kind)
    with pytest.raises(RecipeError, match="not TOML: Exceeds the limit"):
        load(tmp_path, f"[views]\nseed = {'9' * 5000}\n")


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path):
    (tmp_path / "recipe.toml").write_text(to_toml(cache_document()), encoding="utf-8-sig")
    assert (
        load_recipe(tmp_path / "recipe.toml", CacheRecipe, package="teacher_cache")
        == cache_recipe()
    )


def test_none_takes_a_key_away_or_is_its_value(tmp_path):
    document = student_document(student__size=64, run__threads=1, views__size=32, ema__decay=0.5)
    document["student"]["kwargs"] = "{ drop_rate = 0.1 }"
    text = to_toml(document).replace('"{', "{").replace('}"', "}") + "[reparam]\nbranches = 2\n"
    changes = [
        f"{key}=none"
        for key in ("student.size", "run.threads", "views.size", "ema.decay", "reparam.branches",
                    "student.kwargs.drop_rate")
    ]  # fmt: skip
    recipe = load(tmp_path, text, *changes, kind=StudentRecipe)
    assert recipe.student.size is recipe.run.threads is recipe.ema.decay is None
    assert recipe.reparam.branches is None
    assert recipe.student.kwargs == {}
    assert "size" not in recipe.views.model_fields_set
    with pytest.raises(RecipeError, match="schedule.epoch: unknown key; did you mean 'epochs'"):
        load(tmp_path, text, "schedule.epoch=none", kind=StudentRecipe)
    with pytest.raises(RecipeError, match="or none to take the key away"):
        load(tmp_path, text, "student.size=None", kind=StudentRecipe)


def test_a_home_folder_is_found_and_a_url_is_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = load(tmp_path, cache_document(), "images.class_map=~/map.json")
    assert recipe.images.class_map == tmp_path / "map.json"
    (tmp_path / "mine.toml").write_text(to_toml(cache_document()))
    assert load_recipe(Path("~/mine.toml"), CacheRecipe, package="teacher_cache") == cache_recipe()
    for place in ("s3://bucket/weights.pt", "s3:/bucket/weights.pt", "~no-such-user/w.pt"):
        with pytest.raises(RecipeError, match=r"teacher\.checkpoint: got .*expected a path"):
            load(tmp_path, cache_document(), f"teacher.checkpoint={place}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule__decay_rate": 0.9}, 'decay_rate belongs to name = "step"'),
        ({"schedule__name": "step", "schedule__min_lr": 0.001}, 'min_lr belongs to name = "cos'),
        ({"schedule__name": "linear"}, "schedule.name"),
    ],
)
def test_a_key_of_another_schedule_is_refused(changes, said):
    with pytest.raises(RecipeError, match=".") as error:
        parse_recipe(student_document(**changes), StudentRecipe, source="test")
    assert said in str(error.value)


def test_a_step_schedule_is_another_run_and_a_cosine_keeps_its_identity():
    cosine = parse_recipe(student_document(), StudentRecipe, source="test")
    stepped = parse_recipe(student_document(schedule__name="step"), StudentRecipe, source="test")
    assert set(cosine.identity()["schedule"]) == {"epochs", "min_lr", "warmup_epochs"}
    assert stepped.identity()["schedule"]["decay_rate"] == 0.97
