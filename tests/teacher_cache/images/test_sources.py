"""One data set, whatever it is packed in: filled from one form, trained on from another."""

import json
import shutil

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
import webdataset
from packing import pack, write_tar
from small import build_teacher, cache_document, cache_recipe, student_document, to_toml

from student.data.training_data import replayed_data
from student.recipe import StudentRecipe
from student.runs.checkpoint import load_checkpoint
from student.training.start import start_or_continue
from student.training.train import train
from teacher_cache.cache.blocks import committed_blocks, missing_blocks
from teacher_cache.cache.cache import open_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.filling.fill import fill
from teacher_cache.filling.opening import open_or_create
from teacher_cache.images.index import ImagesError, index_images, rebase
from teacher_cache.recipes.document import parse_recipe
from teacher_cache.storage.disk import Disk

FORMS = ("tar", "inside a tar", "class tars", "hfds", "wds")


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    for settings in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(settings, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture
def recipes(tmp_path):
    (tmp_path / "cache.toml").write_text(to_toml(cache_document()))
    (tmp_path / "student.toml").write_text(to_toml(student_document()))
    return tmp_path / "cache.toml", tmp_path / "student.toml"


def packed(form, scans, split, tmp_path):
    """The folder `scans / split` in another form, as --data takes it."""
    target = tmp_path / f"{split}-packed"
    if form == "tar":
        return pack(scans / split, target.with_suffix(".tar"))
    if form == "inside a tar":
        return pack(scans, target.with_suffix(".tar")) / split
    if form == "class tars":
        return class_tars(scans / split, target)
    return f"hfds/{scans / split}" if form == "hfds" else shards(scans / split, target)


def class_tars(images, folder):
    folder.mkdir()
    for of_class in sorted(images.iterdir()):
        pack(of_class, folder / f"{of_class.name}.tar")
    return folder


def shards(images, folder):
    """WebDataset shards in another order, whose members keep the names of their files."""
    folder.mkdir()
    index = index_images(images)
    order = np.random.default_rng(0).permutation(len(index))
    for number, rows in enumerate(np.array_split(order, 2)):
        with webdataset.TarWriter(str(folder / f"{number}.tar")) as writer:
            for row in rows.tolist():
                key, label = index.keys[row].removesuffix(".png"), int(index.labels[row])
                writer.write({"__key__": key, "png": index.read(row), "cls": label})
    return f"wds/{folder}"


@pytest.fixture(scope="module")
def of_the_folder(filled, scans, tmp_path_factory):
    """The tensors that training on the folder ends with."""
    recipe = parse_recipe(student_document(), StudentRecipe, source="test")
    data = replayed_data(recipe, rebase(filled.index, scans / "train"), filled)
    validation = index_images(scans / "val")
    run = start_or_continue(tmp_path_factory.mktemp("folder") / "run", recipe, data, validation)
    for _ in train(run, data, validation, device=torch.device("cpu")):
        pass
    return tensors(run.last)


def tensors(path):
    state = load_checkpoint(path)
    return {**state.model, **{f"ema.{name}": value for name, value in state.ema.items()}}


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")
@pytest.mark.parametrize("form", FORMS)
def test_a_cache_of_a_folder_replays_from_every_form_to_the_same_weights(
    form, of_the_folder, cli, recipes, filled, scans, tmp_path
):
    data = packed(form, scans, "train", tmp_path)
    val = scans / "val" if form == "wds" else packed(form, scans, "val", tmp_path)
    cli(
        "train-student", recipes[1], "--cache", filled.place.root, "--data", data, "--val", val,
        "--out", "run", "--set", "loader.workers=2",
    )  # fmt: skip
    other = tensors(tmp_path / "run" / "last.pt")
    assert of_the_folder.keys() == other.keys()
    assert all(torch.equal(of_the_folder[name], other[name]) for name in other)
    done = cli(
        "audit-cache", filled.place.root, recipes[0], "--data", data, "--records", "270", "--json"
    )
    audit = json.loads(done.stdout)
    assert (audit["passed"], audit["pixels that differ"]) == (True, [])
    assert audit["pixels checked"] == 9  # all that the cache has: 3 views of 3


@pytest.mark.parametrize("form", FORMS)
def test_a_cache_filled_from_any_form_holds_the_folders_records(
    form, cli, recipes, filled, scans, tmp_path
):
    data = packed(form, scans, "train", tmp_path)
    # one view from the folder, where the form has its classes' names; the others from the form
    if form != "wds":
        cli(
            "cache-teacher", recipes[0], "--data", scans / "train", "--out", "cache",
            "--set", "views.count=1",
        )  # fmt: skip
    done = cli("cache-teacher", recipes[0], "--data", data, "--out", "cache")
    assert "3 views of 90 images, complete" in done.stdout
    cache = open_cache(Disk(tmp_path / "cache"))
    assert cache.index.keys == filled.index.keys
    for view in range(3):
        ours, theirs = read_slab(cache, view), read_slab(filled, view)
        for name in ("ids_NK", "logp_NK", "tail_NT", "check"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_plan_evaluate_and_training_without_a_cache_take_a_tar(cli, recipes, scans, tmp_path):
    train_tar, val_tar = (packed("tar", scans, split, tmp_path) for split in ("train", "val"))
    plan = json.loads(cli("plan-cache", recipes[0], "--data", train_tar, "--json").stdout)
    assert (plan["images"], plan["sample"]) == (90, 64)
    cli(
        "train-student", recipes[1], "--data", train_tar, "--val", val_tar, "--out", "run",
        "--set", "distill.alpha=0", "--set", "views.size=32",
    )  # fmt: skip
    results = [
        json.loads(cli("evaluate", "run", "--val", val, "--json").stdout)
        for val in (val_tar, scans / "val")
    ]
    assert results[0] == results[1]


def test_mistakes_are_one_line_and_exit_1(cli, recipes, scans, filled, tmp_path):
    (tmp_path / "zipped.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    short = shutil.copytree(scans / "train", tmp_path / "short")
    for number in range(4):
        (short / "digit-1" / f"{number:03}.png").unlink()
    for data, words in (
        ("zipped.tar.gz", "unpack it with gunzip"),
        ("hfds/nobody/nothing", "hfds/nobody/nothing cannot be opened"),
        ("wds/nowhere", "wds/nowhere: 1 shard (nowhere) not there"),
        ("tfds/mnist", "tfds/mnist: no such folder"),
        (
            pack(short, tmp_path / "short.tar"),
            "it lacks 4 images (digit-1/000.png, digit-1/001.png, digit-1/002.png, ...)",
        ),
    ):
        error = cli(
            "train-student", recipes[1], "--cache", filled.place.root, "--data", data,
            "--val", scans / "val", "--out", "run", check=1,
        ).stderr  # fmt: skip
        assert error.startswith("error: ")
        assert words in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")
def test_a_tar_replaced_during_a_fill_stops_it_and_leaves_no_image_out(scans, tmp_path, workers):
    tar = pack(scans / "train", tmp_path / "train.tar")
    recipe = cache_recipe(images__skip_unreadable=True, loader__workers=workers)
    index = index_images(tar)
    teacher = build_teacher(recipe, index)
    cache = open_or_create(Disk(tmp_path / "cache"), recipe, index, teacher)
    write_tar(tar, ("digit-0/000.png", b"another"))
    with pytest.raises(ImagesError, match=r"train\.tar was changed or replaced since") as error:
        for _ in fill(cache, index, teacher, recipe):
            pass
    assert "Traceback" not in str(error.value)
    assert not committed_blocks(cache.place)
    pack(scans / "train", tar)
    for _ in fill(cache, rebase(cache.index, tar), teacher, recipe):
        pass
    assert not missing_blocks(cache)
