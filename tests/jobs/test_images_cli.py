"""What a user reads where images are away, or classes could be numbered in two ways."""

import shutil

import pytest
import timm
import torch
from small import cache_document, to_toml

from teacher_cache.cache.cache import open_cache
from teacher_cache.storage.disk import Disk


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "cache.toml").write_text(to_toml(cache_document()))
    return tmp_path / "cache.toml"


def test_a_trained_teacher_asks_in_which_order_classes_are_numbered(cli, recipe, scans, tmp_path):
    for name, scan in (("2", "digit-0"), ("10", "digit-1"), ("b", "digit-2")):
        shutil.copytree(scans / "train" / scan, tmp_path / "numbered" / name)
    network = timm.create_model("test_resnet", num_classes=3)
    torch.save(network.state_dict(), tmp_path / "three.pt")
    for command in (("plan-cache",), ("cache-teacher", "--out", "cache")):
        asked = (
            command[0], recipe, "--data", "numbered", *command[1:],
            "--set", "teacher.checkpoint=three.pt", "--set", "teacher.allow_poor=true",
        )  # fmt: skip
        error = cli(*asked, check=1).stderr
        assert "10, 2, b in the order of bytes (torchvision's), 2, 10, b in timm's" in error
        assert 'set images.class_order to the one that the teacher was trained with ("by' in error
        assert error.count("\n") == 1
        cli(*asked, "--set", "images.class_order=timm")
    assert open_cache(Disk(tmp_path / "cache")).index.class_ids == {"2": 0, "10": 1, "b": 2}
    cli("plan-cache", recipe, "--data", "numbered")  # an untrained one knows no order


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_away_stops_a_fill_even_where_unreadable_ones_are_skipped(
    cli, recipe, own_scans, workers
):
    (own_scans / "train" / "digit-1" / "007.png").rename(own_scans / "kept")
    (own_scans / "train" / "digit-1" / "007.png").symlink_to("/proc/self/mem")  # EIO
    asked = (
        "cache-teacher", recipe, "--data", own_scans / "train", "--out", "cache",
        "--set", "images.skip_unreadable=true", "--set", f"loader.workers={workers}",
    )  # fmt: skip
    error = cli(*asked, check=1).stderr.splitlines()[-1]
    assert "digit-1/007.png cannot be read (Input/output error): nothing is lost; mend" in error
    (own_scans / "train" / "digit-1" / "007.png").unlink()
    (own_scans / "kept").rename(own_scans / "train" / "digit-1" / "007.png")
    assert "complete" in cli(*asked).stdout


def test_one_image_one_class_or_a_folder_in_a_recipes_place_is_told(cli, scans, tmp_path):
    image = next((scans / "train" / "digit-0").iterdir())
    one = tmp_path / "one"
    shutil.copytree(scans / "train" / "digit-0", one / "digit-0")
    student = ("train-student", "digits-student", "--set", "distill.alpha=0", "--out", "run")
    plain = ("--val", scans / "val")
    said = cli(*student, "--data", image, *plain, check=1).stderr
    assert "is an image, expected a folder of class folders, or a tar" in said
    said = cli(*student, "--data", one, "--val", one, check=1).stderr
    assert f"{one} holds 1 class, expected 2 or more" in said
    said = cli("train-student", one, "--data", one, *plain, "--out", "run", check=2).stderr
    assert f"{one}: a folder, and no file; give the path of a .toml file" in said
