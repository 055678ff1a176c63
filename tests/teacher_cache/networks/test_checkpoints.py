"""Files of weights as trainers leave them, given to the networks that they are of."""

import argparse
import copy
import re
import shlex
import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from small import CPU, TEACHER
from timm.utils import reparameterize_model
from torch import nn

from student.models.build import build_student
from student.models.trial import ModelError
from teacher_cache.networks.checkpoints import WeightsError, read_checkpoint
from teacher_cache.networks.reparam import ReparamSpec, expand, fold
from teacher_cache.recipes.cache_recipe import TeacherSection
from teacher_cache.teacher.member import TeacherError
from teacher_cache.teacher.networks import load_teacher, weights_sha256


def network(seed=7, name=TEACHER, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(name, **{"num_classes": 3, **kwargs}).eval()


def load(path, classes=3, size=32, **table):
    section = TeacherSection(checkpoint=path, **{"model": TEACHER, **table})
    return load_teacher(section, class_count=classes, has_class_map=False, size=size, device=CPU)


def saved(document, path):
    torch.save(document, path)
    return path


def prefixed(state, *prefixes):
    return {f"{''.join(prefixes)}{name}": value for name, value in state.items()}


STATE = network().state_dict()
OTHER = network(8).state_dict()

WRAPPED = {
    "bare": STATE,
    "state_dict": {"epoch": 3, "state_dict": STATE},
    "model": {"model": STATE, "optimizer": {"state": {}, "param_groups": []}},
    "model_state": {"model_state": STATE, "step": 5},
    "timm's average": {"state_dict": OTHER, "state_dict_ema": STATE},
    "DeiT's average": {"model": OTHER, "model_ema": STATE},
    "a run of ours": {"step": 1, "model": OTHER, "ema": STATE, "optimizer": {}},
    "an average that was not kept": {"model": STATE, "ema": None},
    "wrapped twice": {"model": {"state_dict": STATE, "epoch": 1}},
    "DDP": {"state_dict": prefixed(STATE, "module.")},
    "torch.compile": {"model": prefixed(STATE, "_orig_mod.")},
    "DDP of a compiled model": prefixed(STATE, "module.", "_orig_mod."),
    "a compiled DDP": prefixed(STATE, "_orig_mod.", "module."),
    "Lightning": {"state_dict": prefixed(STATE, "model."), "pytorch-lightning_version": "2.5"},
    "AveragedModel": {**prefixed(STATE, "module."), "n_averaged": torch.tensor(4)},
    "thop": {**STATE, "total_ops": torch.zeros(1), "layer1.0.conv1.total_params": torch.zeros(1)},
    "no counters of batches": {
        name: value for name, value in STATE.items() if "num_batches_tracked" not in name
    },
    "half precision": {name: v.half() if v.is_floating_point() else v for name, v in STATE.items()},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_file_is_taken_however_its_trainer_wrapped_it(tmp_path, kind):
    found = load(saved(WRAPPED[kind], tmp_path / "weights.pt")).members[0].network.state_dict()
    assert list(found) == list(STATE)
    for name, value in found.items():
        rounded = STATE[name].half().to(value.dtype) if kind == "half precision" else STATE[name]
        assert torch.equal(value, rounded), name


def test_who_wants_the_weights_as_trained_gets_them(tmp_path):
    path = saved(WRAPPED["timm's average"], tmp_path / "weights.pt")
    digest = weights_sha256(network(8))
    assert load(path, use_ema=False).weights_sha256 == digest != load(path).weights_sha256
    saved({"state_dict_ema": STATE}, path)
    with pytest.raises(TeacherError, match="holds state_dict_ema, expected .* one of state"):
        load(path, use_ema=False)


@pytest.mark.parametrize("content", ["timm's args", "a whole module"])
def test_a_file_that_only_code_opens_is_refused_with_the_line_that_converts_it(tmp_path, content):
    path = tmp_path / "it's.pth.tar"
    module = network()
    args = argparse.Namespace(model=TEACHER)
    saved(
        module if content == "a whole module" else {"state_dict": STATE, "args": args, "epoch": 3},
        path,
    )
    with pytest.raises(TeacherError, match=r"holds more than tensors \(.*if you trust") as refusal:
        load(path)
    command = shlex.split(re.search(r"convert it with: (.*)$", str(refusal.value))[1])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    assert load(tmp_path / "it's.pth.tar.weights.pt").weights_sha256 == weights_sha256(module)


@pytest.mark.filterwarnings("ignore")  # torch deprecates what others still use
def test_torchscript_is_refused_with_the_line_that_converts_it(tmp_path):
    torch.jit.trace(network(), torch.zeros(1, 3, 32, 32)).save(tmp_path / "script.pt")
    with pytest.raises(TeacherError, match="is TorchScript, .* convert it with") as refusal:
        load(tmp_path / "script.pt")
    command = shlex.split(re.search(r"convert it with: (.*)$", str(refusal.value))[1])
    subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, check=True)
    assert load(tmp_path / "script.pt.weights.pt").class_count == 3


def test_what_is_no_state_dict_says_what_it_holds(tmp_path):
    path = saved({"optimizer": {"state": {}}, "epoch": 3}, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match="holds optimizer, epoch, expected a state dict"):
        read_checkpoint(path)
    (tmp_path / "text.pt").write_text("no pickle")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_checkpoint(tmp_path / "text.pt")


def looking_trained(model):
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    return model.eval()


GHOST = {"model": "ghostnetv3_050", "size": 64}


def student(name, branches, **spec):
    torch.manual_seed(1)
    built = build_student(
        name,
        num_classes=3,
        image_size=64,
        reparam=ReparamSpec(branches=branches, **spec),
        kwargs={},
    )
    return looking_trained(built)


def test_a_ghostnetv3_of_ours_can_teach_exported_or_not(tmp_path):
    trained = student("ghostnetv3_050", 3)
    save_file(fold(trained).state_dict(), tmp_path / "exported.safetensors")
    saved({"step": 9, "model": trained.state_dict(), "ema": None}, tmp_path / "last.pt")
    for file, form in (("exported.safetensors", fold(trained)), ("last.pt", trained)):
        assert load(tmp_path / file, **GHOST).weights_sha256 == weights_sha256(form)


@pytest.mark.parametrize(
    ("name", "branches"),
    [("ghostnetv3_050", 2), ("mobilenetv2_050", 3), ("torchvision/shufflenet_v2_x0_5", 2)],
)
def test_a_run_in_training_form_can_teach(tmp_path, name, branches):
    trained = student(name, branches)
    path = saved({"step": 9, "model": trained.state_dict(), "ema": None}, tmp_path / "last.pt")
    teacher = load(path, model=name, size=64)
    assert teacher.weights_sha256 == weights_sha256(fold(trained))


def test_a_deployed_mobileone_can_teach(tmp_path):
    trained = looking_trained(network(name="mobileone_s0"))
    deployed = reparameterize_model(trained)
    save_file(deployed.state_dict(), tmp_path / "deployed.safetensors")
    teacher = load(tmp_path / "deployed.safetensors", model="mobileone_s0", size=64)
    assert teacher.weights_sha256 == weights_sha256(deployed)


def test_official_ghostnetv3_names_are_taken(tmp_path):
    """Its branches' norms are called `bn`, timm's `bn1`; thop left its counts in the file."""
    trained = looking_trained(network(name="ghostnetv3_050"))
    official = {
        re.sub(r"(rpr_(?:conv\.\d+|scale))\.bn1\.", r"\1.bn.", name): value
        for name, value in trained.state_dict().items()
    }
    assert len(official.keys() - trained.state_dict().keys()) > 300
    official["blocks.0.0.ghost1.total_ops"] = torch.zeros(1)
    path = saved({"state_dict": prefixed(official, "module.")}, tmp_path / "ck.pth.tar")
    assert load(path, **GHOST).weights_sha256 == weights_sha256(trained)


def test_position_embeddings_are_resized_as_timm_does(tmp_path, caplog):
    trained = network(name="test_vit", img_size=64)
    path = saved(trained.state_dict(), tmp_path / "vit.pt")
    resized = timm.create_model(
        "test_vit", num_classes=3, img_size=32, pretrained=True,
        pretrained_cfg_overlay={"state_dict": trained.state_dict(), "num_classes": 3},
    )  # fmt: skip
    teacher = load(path, model="test_vit", kwargs={"img_size": 32})
    assert teacher.weights_sha256 == weights_sha256(resized)
    assert "resized by timm's filter: pos_embed" in caplog.text


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "googlenet"])
def test_torchvisions_networks_teach(tmp_path, name):
    torch.manual_seed(0)
    arguments = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    trained = torchvision.models.get_model(name, num_classes=3, **arguments).eval()
    path = saved(trained.state_dict(), tmp_path / "weights.pth")
    teacher = load(path, model=f"torchvision/{name}", size=64)
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = trained(teacher.members[0].normalization.images(pixels))
    assert torch.equal(teacher.logits(pixels), expected)


def test_a_torchvision_teacher_in_bf16_has_its_head_in_float32(tmp_path):
    torch.manual_seed(0)
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    path = saved(state, tmp_path / "weights.pth")
    arguments = {"model": "torchvision/resnet18", "size": 64}
    full, half = load(path, **arguments), load(path, precision="bf16", **arguments)
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    one, other = full.logits(pixels), half.logits(pixels)
    assert 0 < (one - other).abs().max() < 0.05 * one.abs().max()  # 8 bits, a dozen layers
    assert not torch.equal(other, other.bfloat16().float())
    with pytest.raises(TeacherError, match="ends in something else than a linear layer"):
        load(None, pretrained=False, model="torchvision/squeezenet1_1", precision="bf16", size=64)


def test_a_student_starts_from_any_of_these_files_and_keeps_its_function(tmp_path):
    path = saved(WRAPPED["timm's average"], tmp_path / "weights.pt")
    arguments = {"num_classes": 3, "image_size": 32, "kwargs": {}, "checkpoint": path}
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = network()(images)
        plain = build_student(TEACHER, reparam=ReparamSpec(), **arguments).eval()
        assert torch.equal(plain(images), expected)
        warm = ReparamSpec(branches=3, init="warm_start")
        branched = build_student(TEACHER, reparam=warm, **arguments).eval()
        torch.testing.assert_close(branched(images), expected, rtol=0.0, atol=1e-4)
    trained = build_student(TEACHER, use_ema=False, reparam=ReparamSpec(), **arguments)
    assert weights_sha256(trained) == weights_sha256(network(8))


def test_a_student_of_other_classes_begins_with_a_classifier_of_its_own(tmp_path, caplog):
    path = saved(network(num_classes=5).state_dict(), tmp_path / "five.pt")
    arguments = {"num_classes": 3, "image_size": 32, "kwargs": {}, "reparam": ReparamSpec()}
    torch.manual_seed(3)
    fresh = build_student(TEACHER, **arguments).state_dict()
    torch.manual_seed(3)
    found = build_student(TEACHER, checkpoint=path, **arguments).state_dict()
    five = network(num_classes=5).state_dict()
    assert "fc.weight, fc.bias are of other classes and begin anew" in caplog.text
    for name, value in found.items():
        assert torch.equal(value, (fresh if name.startswith("fc.") else five)[name]), name


def test_branches_drawn_anew_on_pretrained_weights_are_refused(tmp_path):
    path = saved(STATE, tmp_path / "weights.pt")
    arguments = {"num_classes": 3, "image_size": 32, "reparam": ReparamSpec(branches=3)}
    with pytest.raises(ModelError, match=r"with student.checkpoint, expected 'warm_start'"):
        build_student(TEACHER, kwargs={}, checkpoint=path, **arguments)
    with pytest.raises(ModelError, match=r"with student.kwargs.pretrained, expected 'warm_start'"):
        build_student(TEACHER, kwargs={"pretrained": True}, **arguments)


def test_a_deployed_file_is_no_start_for_a_student(tmp_path):
    deployed = fold(network(name="ghostnetv3_050"))
    path = saved(deployed.state_dict(), tmp_path / "deployed.pt")
    with pytest.raises(ModelError, match="holds the deployed form .* folding cannot be undone"):
        build_student(
            "ghostnetv3_050", num_classes=3, image_size=64, reparam=ReparamSpec(), kwargs={},
            checkpoint=path,
        )  # fmt: skip


def test_weights_of_another_network_are_refused_in_its_names(tmp_path):
    expanded, _ = expand(network(), ReparamSpec(branches=2), torch.zeros(1, 3, 32, 32))
    states = {
        "vit": network(name="test_vit").state_dict(),
        "branches": expanded.state_dict(),
    }
    for state in states.values():
        path = saved(copy.deepcopy(state), tmp_path / "weights.pt")
        with pytest.raises(TeacherError, match="another network than|training form of"):
            load(path, model="test_efficientnet")
