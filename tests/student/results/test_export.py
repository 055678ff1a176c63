"""Exported files: opened by plain libraries as their cards say, whole or not there."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import CPU, student_document
from torch import nn

from student.data.training_data import plain_data, replayed_data
from student.models.build import build_student
from student.recipe import StudentRecipe
from student.results.export import ExportError, export
from student.results.onnx_file import OnnxError, onnx_bytes
from student.runs.run_weights import Weights, load_network
from student.training.start import start_or_continue
from student.training.train import train
from teacher_cache.durable import write_all
from teacher_cache.images.index import index_images, rebase
from teacher_cache.networks.checkpoints import WeightsError, read_checkpoint
from teacher_cache.networks.reparam import ReparamSpec, fold
from teacher_cache.networks.weights import load_weights
from teacher_cache.recipes.document import parse_recipe

ONNX_MISSING = (
    "onnx, onnxscript or onnxruntime is not installed: pip install 'retort-distill[export]'"
)


def needs_onnx():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=ONNX_MISSING)


def finished_run(out, scans, cache=None, **changes):
    document = student_document(**{"schedule__epochs": 1} | changes)
    recipe = parse_recipe(document, StudentRecipe, source="test")
    index = index_images(scans / "train")
    data = replayed_data(recipe, rebase(cache.index, scans / "train"), cache) if cache else None
    validation = index_images(scans / "val", class_ids=index.class_ids)
    run = start_or_continue(out, recipe, data or plain_data(recipe, index), validation)
    for _ in train(run, data or plain_data(recipe, index), validation, device=CPU):
        pass
    return run


@pytest.fixture(scope="module")
def run(scans, filled, tmp_path_factory):
    """Five distilled steps of a small network with two branches a convolution."""
    out = tmp_path_factory.mktemp("exported") / "run"
    return finished_run(out, scans, filled, reparam__branches=2)


def images(size=32, rows=7):
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(5))


def logits_of(network, batch):
    with torch.inference_mode():
        return network(batch)


def code_of(card):
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), flags=re.DOTALL)
    return code


def opened_as_the_cards_say(files, batch):
    """Run the cards' code in a process that cannot import this project; each model's logits."""
    folder = files[0].parent
    save_file({"images": batch}, folder / "images.safetensors")
    code = [
        "import sys; sys.modules.update(student=None, teacher_cache=None)",
        "import torch; from safetensors.torch import load_file, save_file",
        "images, logits = load_file('images.safetensors')['images'], {}",
    ]
    for file in files:
        code.append(code_of(file.with_name(file.name + ".md")))
        code.append(f"with torch.inference_mode(): logits[{file.name!r}] = model(images)")
    code.append("save_file(logits, 'logits.safetensors')")
    subprocess.run([sys.executable, "-I", "-c", "\n".join(code)], cwd=folder, check=True)
    logits = load_file(folder / "logits.safetensors")
    return [logits[file.name] for file in files]


def assert_same(found, expected):
    """Up to float32's own rounding, relative to the largest logit, and not for want of spread."""
    assert expected.std(dim=0).mean() > 1e-3
    tolerance = 1e-4 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0.0, atol=tolerance)


@pytest.mark.slow
def test_plain_timm_and_torchvision_open_the_files_with_the_code_on_their_cards(scans, tmp_path):
    plain = {"distill__alpha": 0.0, "views__size": 32, "reparam__branches": 3}
    files, expected = [], []
    for name in ("test_efficientnet", "torchvision/shufflenet_v2_x0_5"):
        label = name.rpartition("/")[2]
        run = finished_run(tmp_path / label, scans, student__model=name, **plain)
        done = export(run, tmp_path / "out" / f"{label}.safetensors")
        assert done.parameters_folded < done.parameters
        files.append(done.file)
        expected.append(logits_of(load_network(run), images()))
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {name for file in files for name in (file.name, f"{file.name}.md")}
    for found, logits in zip(opened_as_the_cards_say(files, images()), expected, strict=True):
        assert_same(found, logits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("ghostnetv3_050", {"reparam__branches": 3}),
        ("ghostnetv3_050", {"reparam__branches": 2, "reparam__scale_1x1": False}),
        ("mobilenetv2_050", {"reparam__branches": 3}),
        ("deit_tiny_patch16_224", {"student__kwargs": {"depth": 2}}),
    ],
)
def test_the_papers_students_open_in_plain_timm_and_in_onnxruntime(model, changes, scans, tmp_path):
    needs_onnx()
    plain = {"distill__alpha": 0.0, "views__size": 64, "student__model": model, **changes}
    plain |= {"schedule__epochs": 5, "ema__decay": 0.0}  # until BatchNorm's statistics are near
    run = finished_run(tmp_path / "run", scans, **plain)
    done = export(run, tmp_path / "student.safetensors")
    expected = logits_of(load_network(run), images(64))
    (found,) = opened_as_the_cards_say([done.file], images(64))
    assert_same(found, expected)
    assert export(run, tmp_path / "student.onnx").largest_difference <= 1e-4


def test_metadata_and_card_say_what_the_file_is(run, filled, tmp_path):
    done = export(run, tmp_path / "student.safetensors")
    with safe_open(done.file, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["size"], metadata["classes"]) == ("32", "3")
    assert (metadata["interpolation"], metadata["crop_ratio"]) == ("bicubic", "1.0")
    assert metadata["mean"] == "0.485 0.456 0.406"
    assert json.loads(metadata["class_ids"])["digit-1"] == 1
    card = done.card.read_text()
    summary = json.loads(run.summary.read_text())
    for words in (
        filled.manifest.recipe_digest,
        filled.manifest.teacher_weights_sha256,
        f"ema_top1 {summary['ema_top1']:.2f}%",
        f"{done.parameters:,} in training, {done.parameters_folded:,} folded",
        f"torch {version('torch')}",
        '"branches": 2',
        "ms in training form",
        "| images trained on | 90 |",
        f"| validation images digest | `{run.data_digest['validation images']}` |",
    ):
        assert words in card
    assert "224" not in card.partition("## Recipe")[2], "the cache's views were shown, at 32 px"
    assert 0 < done.latency_folded_ms < done.latency_ms


def test_the_average_is_exported_unless_the_trained_weights_are_asked_for(run, tmp_path):
    averaged = export(run, tmp_path / "averaged.safetensors").file
    trained = export(run, tmp_path / "trained.safetensors", weights=Weights.TRAINED).file
    assert averaged.read_bytes() != trained.read_bytes()
    expected = fold(load_network(run, Weights.TRAINED)).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in load_file(trained).items())
    assert "trained (step 5" in (tmp_path / "trained.safetensors.md").read_text()


def test_onnxruntime_gives_the_same_logits_at_any_batch(run, tmp_path):
    needs_onnx()
    import onnx
    import onnxruntime

    done = export(run, tmp_path / "student.onnx")
    assert done.largest_difference <= 1e-4
    batch = images(rows=7)
    expected = logits_of(load_network(run), batch)
    session = onnxruntime.InferenceSession(done.file)
    for rows in (1, 3, 7):
        found = session.run(None, {"images": batch[-rows:].numpy()})[0]
        found_7C = torch.cat([expected[:-rows], torch.from_numpy(found)])
        assert_same(found_7C, expected)
    model = onnx.load(done.file)
    assert {entry.key: entry.value for entry in model.metadata_props}["size"] == "32"
    assert b"/student/" not in done.file.read_bytes()  # no stack traces of this machine
    assert {node.op_type for node in model.graph.node}.isdisjoint({"BatchNormalization"})


def test_missing_packages_are_named_with_the_command_that_installs_them(
    cli, run, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    error = cli("export", run.folder, "--out", "student.onnx", check=1).stderr
    assert "pip install 'retort-distill[export]'" in error
    assert not list(tmp_path.glob("student*"))


class Fractal(nn.Module):
    """An operator that ONNX has no form for."""

    def forward(self, x):
        return torch.special.bessel_j0(x).mean(dim=(2, 3))


def test_an_operator_without_an_onnx_form_is_named():
    needs_onnx()
    with pytest.raises(OnnxError, match=r"cannot write Fractal as ONNX \(.*bessel_j0.*safetensors"):
        onnx_bytes(Fractal().eval(), size=8, metadata={})


@pytest.mark.slow
def test_a_student_that_onnx_cannot_hold_leaves_no_file_and_says_what_to_do(cli, scans, tmp_path):
    """MaxViT's grid attention is a view that torch's exporter cannot take of a free batch."""
    needs_onnx()
    run = finished_run(
        tmp_path / "run",
        scans,
        distill__alpha=0.0,
        views__size=64,
        student__model="maxvit_rmlp_pico_rw_256",
        student__kwargs={"depths": [1, 1, 1, 1], "img_size": 64},
    )
    out = tmp_path / "out"
    out.mkdir()
    error = cli("export", run.folder, "--out", out / "student.onnx", check=1).stderr
    assert re.match(r"error: torch's exporter cannot write MaxxVit as ONNX \(\w+: .+\): ", error)
    assert "nothing was written; export to a .safetensors file" in error
    assert list(out.iterdir()) == []
    cli("export", run.folder, "--out", out / "student.safetensors")
    assert (out / "student.safetensors").is_file()


def test_what_cannot_be_written_is_refused_before_any_work(cli, run, tmp_path):
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "folder.onnx").mkdir()
    for out, words, code in (
        ("student.pth", "got file type .pth, expected .safetensors or .onnx: choose another", 2),
        ("student", "got file type none, expected .safetensors or .onnx: choose another", 2),
        ("folder.onnx", "is a folder", 1),
        ("taken/student.safetensors", "taken cannot be written to", 1),
        ("/proc/nowhere/student.safetensors", "/proc", 1),
    ):
        error = cli("export", run.folder, "--out", out, check=code).stderr
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert words in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.onnx", "taken"]


def test_files_that_belong_together_are_all_written_or_none(tmp_path):
    kept, gone = tmp_path / "kept", tmp_path / "no such folder" / "gone"
    kept.write_text("before")
    with pytest.raises(FileNotFoundError):
        write_all({kept: b"after", gone: b"after"})
    assert kept.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]  # no temporary file either
    write_all({kept: b"after", tmp_path / "beside": b"too"})
    assert kept.read_text() == "after"


def test_a_folder_without_write_access_is_named(run, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(ExportError, match="cannot be written to"):
        export(run, tmp_path / "student.safetensors")


def test_the_command_prints_parameters_agreement_and_latency(cli, run):
    printed = cli("export", run.folder, "--out", "deep/er/student.safetensors").stdout
    assert re.search(r"[\d,]+ parameters in training, [\d,]+ folded; logits agree to ", printed)
    assert re.search(r"takes [\d.]+ ms before folding, [\d.]+ ms after", printed)
    assert "student.safetensors.md: recipe, digests" in printed


def test_a_checkpoint_of_the_other_form_is_called_by_its_name(run, tmp_path):
    save_file(fold(load_network(run)).state_dict(), tmp_path / "folded.safetensors")
    plain = {"num_classes": 3, "image_size": 32, "kwargs": {}}
    folded = build_student("test_efficientnet", reparam=ReparamSpec(), **plain)
    with pytest.raises(WeightsError, match=r"training form .* fold it with 'cli.py export RUN"):
        load_weights(folded, read_checkpoint(run.last), source="last.pt")
    expanded = build_student("test_efficientnet", reparam=ReparamSpec(branches=2), **plain)
    state = read_checkpoint(tmp_path / "folded.safetensors")
    with pytest.raises(WeightsError, match=r"folded or plain network, .* cannot be undone"):
        load_weights(expanded, state, source="folded.safetensors")
    timms = build_student("ghostnetv3_050", reparam=ReparamSpec(), **plain | {"image_size": 64})
    with pytest.raises(WeightsError, match="training form"):
        load_weights(fold(timms), timms.state_dict(), source="ghost.safetensors")
