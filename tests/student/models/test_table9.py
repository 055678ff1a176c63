"""Every network of the paper's Table 9 as a student: trained, expanded, folded, exported, compared.

`make test-models` runs all of them (about an hour on one core), `make test-all` three.
"""

import json

import pytest
from safetensors.torch import load_file

from student.models.build import build_student, without_start
from student.models.published import ROWS
from teacher_cache.networks.reparam import ReparamSpec, fold

MODELS = sorted({row.model for row in ROWS if row.model is not None})
FEW = ("mobilenetv2_100", "mobileone_s0", "torchvision/shufflenet_v2_x1_0")
NOTHING_TO_EXPAND = ("deit_tiny_patch16_224", "pit_ti_224", "pit_xs_224", "convit_tiny")
ALREADY_EXPANDED = "mobileone_"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in FEW else pytest.mark.models)
        for name in MODELS
    ],
)
def test_a_network_of_table_9_can_be_a_student(process, scans, tmp_path, name):
    expands = name not in NOTHING_TO_EXPAND and not name.startswith(ALREADY_EXPANDED)
    settings = {
        "student.model": name,
        "student.size": 224,
        "distill.alpha": 0,
        "views.size": 40,
        "optimizer.batch_size": 30,
        "optimizer.micro_batch": 15,
        "schedule.epochs": 1,
        "evaluation.batch_size": 10,
        "run.channels_last": "false",  # torch 2.15 corrupts memory with it: LOG.md
        **({"reparam.branches": 3 if name.startswith("ghostnetv3") else 2} if expands else {}),
    }
    changes = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    data = ("--data", scans / "train", "--val", scans / "val")
    process("train-student", "digits-student", *changes, *data, "--out", "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["images"] == 90
    has_branches = expands or name.startswith(ALREADY_EXPANDED)
    assert (summary["parameters"] > summary["parameters_folded"]) is has_branches
    process("export", "run", "--out", "student.safetensors")  # compares the logits itself
    plain = fold(
        build_student(
            name, num_classes=3, image_size=224, reparam=ReparamSpec(), kwargs=without_start({})
        )
    )
    plain.load_state_dict(load_file(tmp_path / "student.safetensors"), strict=True)
