"""`bench-data` on small real folders: what it prints, and that its figures hang together."""

import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from small import student_document, to_toml

from student.speed.throughput import _sample, workers_needed
from teacher_cache.errors import UserError
from teacher_cache.images.index import index_images

STAGES = {"read", "decode", "crop+resize", "ops", "erase", "sample", "transport"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Ten JPEGs of 160 x 120 in two classes, one of them damaged."""
    root, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number in range(10):
        folder = root / f"class-{number % 2}"
        folder.mkdir(exist_ok=True)
        coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.jpg", quality=90)
    (root / "class-1" / "9.jpg").write_bytes(b"\xff\xd8\xff no more")
    return root


def test_json_holds_rates_ratios_stages_and_the_students_need(cli, photographs, tmp_path):
    recipe = tmp_path / "student.toml"
    recipe.write_text(to_toml(student_document(student__size=48)))
    done = cli(
        "bench-data", "--data", photographs, "--recipe", recipe, "--workers", "2,1",
        "--seconds", 0.3, "--device", "cpu", "--json", check=0,
    )  # fmt: skip
    facts = json.loads(done.stdout)
    assert (facts["images"], facts["sample"], facts["size"]) == (10, 9, 48)
    assert list(facts["images_per_s"]) == ["1", "2"]
    one_core = facts["images_per_s_one_core"]
    assert one_core.keys() == {"retort", "timm", "torchvision"}
    for peer in ("timm", "torchvision"):
        by_rates = one_core["retort"] / one_core[peer]  # medians differ, more so under load
        assert by_rates / 8 < facts[f"ratio_to_{peer}"] < by_rates * 8
    stages = facts["stages"]
    assert stages.keys() == STAGES
    assert all(value >= 0 for value in stages.values())
    assert min(stages[name] for name in ("read", "decode", "crop+resize", "transport")) > 0
    rendering_us = sum(stages.values()) - stages["transport"]
    assert 1 / 20 < rendering_us * one_core["retort"] / 1e6 < 20
    student = facts["student"]
    assert student["model"] == "test_efficientnet"
    assert student["workers"] >= 1
    assert student["measured"] == (student["workers"] <= 2)


def test_the_table_says_the_same_and_what_it_cannot_compare(cli, scans):
    done = cli(
        "bench-data", "--data", scans / "train", "--size", 32, "--workers", "1",
        "--seconds", 0.1, check=0,
    )  # fmt: skip
    assert "64 of 90 images to 32 px" in done.stdout
    assert "torchvision reads JPEGs only" in done.stdout  # the scans are PNGs
    for name in STAGES:
        assert f"\n  {name} " in done.stdout


def test_wrong_counts_and_a_folder_without_readable_images_are_said(cli, tmp_path):
    (tmp_path / "data" / "a").mkdir(parents=True)
    (tmp_path / "data" / "a" / "1.jpg").write_bytes(b"nothing")
    wrong = cli("bench-data", "--data", "data", "--workers", "1,x", check=2).stderr
    assert "expected counts such as 1,2,4" in wrong
    error = cli("bench-data", "--data", "data", check=1).stderr
    assert "none of 1 sampled images can be read" in error


def test_workers_needed_is_the_fewest_that_suffice_and_scales_beyond_what_was_measured():
    measured = {0: 90.0, 1: 100.0, 2: 190.0, 4: 360.0}
    assert [workers_needed(measured, rate) for rate in (10, 100, 101, 191, 361, 900)] == [
        1, 1, 2, 4, 5, 10,
    ]  # fmt: skip
    with pytest.raises(UserError, match="pass --workers"):
        workers_needed({0: 90.0}, 10)


def test_the_sample_of_a_tar_is_read_under_its_own_names(scans, tmp_path):
    with tarfile.open(tmp_path / "scans.tar", "w") as tar:
        tar.add(scans / "train", arcname="")
    for data in (tmp_path / "scans.tar", scans / "train"):
        index = index_images(str(data))
        sample = _sample(index)
        rows = [index.keys[row] for row in range(len(index))]
        for place in range(len(sample)):
            row = rows.index(sample.keys[place])
            assert sample.read(place) == index.read(row)
            assert sample.labels[place] == index.labels[row]
