"""A run evaluated at another size and crop than its own."""

import json

import pytest
from small import student_document, to_toml


@pytest.fixture(params=["test_efficientnet", "test_vit"])
def run(cli, scans, tmp_path, request):
    document = student_document(
        student__model=request.param, distill__alpha=0.0, views__size=32, schedule__epochs=1
    )
    (tmp_path / "student.toml").write_text(to_toml(document))
    data = ("--data", scans / "train", "--val", scans / "val")
    cli("train-student", "student.toml", *data, "--out", "run")
    return tmp_path / "run"


def test_another_size_and_crop_are_what_is_shown_and_said(cli, scans, run):
    """A transformer's position embeddings are resized to them."""

    def evaluated(*more):
        return json.loads(cli("evaluate", run, "--val", scans / "val", "--json", *more).stdout)

    own = evaluated()
    assert (own["size"], own["crop ratio"]) == (32, 1.0)
    assert evaluated("--size", "32", "--crop-ratio", "1") == own
    other = evaluated("--size", "64", "--crop-ratio", "0.8")
    assert (other["size"], other["crop ratio"]) == (64, 0.8)
    assert other["top1"] == other["folded_top1"]
    assert 0 <= other["top1"] <= 100
