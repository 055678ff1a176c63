"""Runs that began from weights: resumed, evaluated and exported once these are gone."""

import itertools
import re

import pytest
import timm
import torch
from safetensors.torch import save_file
from small import CPU, student_document

from student.data.training_data import plain_data
from student.models.trial import ModelError
from student.recipe import StudentRecipe
from student.results.evaluate import evaluate_run
from student.results.export import export
from student.runs.checkpoint import load_checkpoint
from student.training.start import start_or_continue
from student.training.train import train
from teacher_cache.images.index import index_images
from teacher_cache.recipes.document import RecipeError, parse_recipe

MODEL = "test_efficientnet"


def recipe_of(**changes):
    document = student_document(**{"distill__alpha": 0.0, "views__size": 32} | changes)
    return parse_recipe(document, StudentRecipe, source="test")


def job(out, scans, **changes):
    recipe = recipe_of(**changes)
    data = plain_data(recipe, index_images(scans / "train"))
    validation = index_images(scans / "val", class_ids=data.index.class_ids)
    run = start_or_continue(out, recipe, data, validation)
    return train(run, data, validation, device=CPU), run, validation


def stopped_after_one_step(out, scans, **changes):
    steps, run, validation = job(out, scans, **changes)
    for _ in itertools.islice(steps, 2):
        pass
    steps.close()
    return run, validation


def finished(out, scans, **changes):
    steps, run, validation = job(out, scans, **changes)
    for _ in steps:
        pass
    return run, validation


def in_a_hubs_cache(monkeypatch, tmp_path, weights):
    """As after a download: huggingface_hub's folders, and no network."""
    from huggingface_hub import constants

    repository = timm.get_pretrained_cfg(MODEL).hf_hub_id
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    save_file(weights, snapshot / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def assert_goes_on_without(run, validation, scans, tmp_path, **changes):
    """Resumed, evaluated and exported; whether it ends as an undisturbed run is for the caller."""
    again, _ = finished(run.folder, scans, **changes)
    assert again.summary.exists()
    assert evaluate_run(run, validation, CPU)["images"] == len(validation)
    assert export(run, tmp_path / "student.safetensors").file.is_file()


def test_a_run_from_the_hubs_weights_goes_on_without_the_hub(monkeypatch, scans, tmp_path):
    torch.manual_seed(5)
    weights = timm.create_model(MODEL).state_dict()
    hub = in_a_hubs_cache(monkeypatch, tmp_path, weights)
    changes = {"student__kwargs": {"pretrained": True}}
    whole, _ = finished(tmp_path / "whole", scans, **changes)
    run, validation = stopped_after_one_step(tmp_path / "run", scans, **changes)
    hub.rename(tmp_path / "gone")
    assert_goes_on_without(run, validation, scans, tmp_path, **changes)
    one, other = (load_checkpoint(each.last).model for each in (whole, run))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    with pytest.raises(ModelError, match=f"weights of {MODEL} could not be fetched"):
        finished(tmp_path / "another", scans, **changes)


def test_a_run_from_a_file_goes_on_without_the_file(scans, tmp_path):
    torch.manual_seed(5)
    folder = tmp_path / "private folder"
    folder.mkdir()
    weights = timm.create_model(MODEL, num_classes=3).state_dict()
    torch.save({"state_dict": weights}, folder / "start.pt")
    changes = {"student__checkpoint": str(folder / "start.pt"), "optimizer__lr": 1e-9}
    run, validation = stopped_after_one_step(tmp_path / "run", scans, **changes)
    found = load_checkpoint(run.last).model["conv_stem.weight"]
    torch.testing.assert_close(found, weights["conv_stem.weight"], rtol=0.0, atol=1e-6)
    (folder / "start.pt").unlink()
    assert_goes_on_without(run, validation, scans, tmp_path, **changes)
    card = (tmp_path / "student.safetensors.md").read_text()
    assert '"checkpoint": "start.pt"' in card
    assert "private folder" not in card


def test_two_starts_are_one_too_many():
    with pytest.raises(RecipeError, match="pretrained = true and a checkpoint, expected one start"):
        recipe_of(student__kwargs={"pretrained": True}, student__checkpoint="a.pt")


def test_a_start_is_part_of_a_run_but_no_start_changes_no_identity():
    plain = recipe_of().identity()["student"]
    assert plain.keys() == {"model", "size", "kwargs"}
    started = recipe_of(student__checkpoint="a.pt")
    assert started.identity()["student"]["checkpoint"] == "a.pt"
    again = parse_recipe(recipe_of().model_dump(mode="json"), StudentRecipe, source="run.json")
    assert again.identity() == recipe_of().identity()


# At 32 px its last convolutions see one pixel, so a single image has no variance there.
ONE_PIXEL = {"student__model": "torchvision/mobilenet_v2", "student__kwargs": {"width_mult": 0.25}}


def test_one_image_a_pass_is_refused_before_the_first_step_where_batchnorm_has_no_variance(
    scans, tmp_path
):
    with pytest.raises(ModelError, match=r"one image a forward pass.* raise optimizer.micro_batch"):
        finished(tmp_path / "run", scans, optimizer__micro_batch=1, **ONE_PIXEL)
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize(
    "name", ["googlenet", pytest.param("inception_v3", marks=pytest.mark.slow)]
)
def test_a_student_with_auxiliary_outputs_is_trained_without_them(scans, tmp_path, name):
    changes = {"student__model": f"torchvision/{name}", "schedule__epochs": 1}
    if name == "inception_v3":
        changes |= {"views__size": 80}
    run, validation = stopped_after_one_step(tmp_path / "run", scans, **changes)
    assert evaluate_run(run, validation, CPU)["model"] == f"torchvision/{name}"
    card = export(run, tmp_path / "student.safetensors").card.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    exec(code.replace("'student.safetensors'", repr(str(tmp_path / "student.safetensors"))), {})


def test_auxiliary_outputs_that_were_asked_for_are_refused_in_words(scans, tmp_path):
    changes = {"student__kwargs": {"aux_logits": True}, "student__model": "torchvision/googlenet"}
    with pytest.raises(ModelError, match="GoogLeNetOutputs in training, expected logits alone"):
        finished(tmp_path / "run", scans, **changes)
