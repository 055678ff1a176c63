"""torch.compile in a run: minutes of a compiler, so marked slow."""

import pytest
import torch
from small import student_document, to_toml

from student.runs.checkpoint import load_checkpoint
from student.runs.metrics import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture
def training(process, scans, tmp_path):
    """Train 5 steps in a process of its own, with a compiler's cache of its own."""
    recipe = tmp_path / "student.toml"
    recipe.write_text(
        to_toml(student_document(distill__alpha=0.0, views__size=32, schedule__epochs=1))
    )

    def run(out, *more, check=0, **environment):
        return process(
            "train-student", recipe, "--data", scans / "train", "--val", scans / "val",
            "--out", out, "--device", "cpu", *more, check=check,
            env={"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")} | environment,
        )  # fmt: skip

    return run


def test_a_compiled_run_follows_the_plain_one_and_its_checkpoint_opens_without(training, tmp_path):
    training("plain")
    training("compiled", "--set", "run.compile=true")
    one, other = (load_checkpoint(tmp_path / name / "last.pt") for name in ("plain", "compiled"))
    assert one.model.keys() == other.model.keys()
    for name, value in one.model.items():
        torch.testing.assert_close(other.model[name], value, rtol=0.02, atol=0.02)
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line]
        for name in ("plain", "compiled")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_without_a_compiler_the_error_says_what_is_needed(training):
    error = training("run", "--set", "run.compile=true", check=1, CXX="/nowhere/c++").stderr
    assert "No working C++ compiler found" in error
    assert "it needs a C++ compiler (g++, or the one that CXX names)" in error
