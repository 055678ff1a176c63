"""build_student: names, GhostNetV3 at every number of branches, files that plain timm opens."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from student.models.build import UnknownModel, build_student, plain_source
from student.recipe import StudentRecipe
from teacher_cache.errors import UserError
from teacher_cache.networks.branches import Branches
from teacher_cache.networks.reparam import ReparamSpec, expand, fold, is_expanded
from teacher_cache.recipes.document import load_recipe

PLAIN = ReparamSpec()


def build(name: str, **changed: object) -> nn.Module:
    arguments = {"num_classes": 10, "image_size": 64, "reparam": PLAIN, "kwargs": {}} | changed
    return build_student(name, **arguments)  # type: ignore[arg-type]


def images(rows: int = 8) -> Tensor:
    return torch.randn(rows, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def settled(model: nn.Module) -> nn.Module:
    """With BatchNorm statistics of real activations, so that logits differ between images."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        model.train()(images(32))
    return model.eval()


def assert_same(logits: Tensor, expected: Tensor) -> None:
    """Up to float32's own rounding, relative to the largest logit, and not for want of spread."""
    assert expected.std(dim=0).mean() > 0.02
    tolerance = 1e-4 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(logits, expected, rtol=0.0, atol=tolerance)


def size_of(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


# Run in a fresh process that cannot import this project: what a user of the file does.
OPEN_IN_PLAIN_LIBRARIES = """
import sys
sys.modules.update(dict.fromkeys(["student", "teacher_cache"]))  # importing them now fails
import timm, torch, torchvision
from safetensors.torch import load_file, save_file

images = load_file("images.safetensors")["images"]
models = {
    "ghostnetv3": timm.utils.reparameterize_model(
        timm.create_model("ghostnetv3_050", num_classes=10)
    ),
    "ghostnetv3_5": timm.utils.reparameterize_model(
        timm.create_model("ghostnetv3_050", num_classes=10)
    ),
    "mobilenetv2": timm.create_model("mobilenetv2_050", num_classes=10),
    "shufflenet": torchvision.models.shufflenet_v2_x0_5(num_classes=10),
}
logits = {}
for name, model in models.items():
    model.load_state_dict(load_file(f"{name}.safetensors"), strict=True)
    with torch.no_grad():
        logits[name] = model.eval()(images)
save_file(logits, "logits.safetensors")
"""


@pytest.mark.slow
def test_plain_timm_and_torchvision_open_folded_students_in_a_fresh_process(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    students = {
        "ghostnetv3": build("ghostnetv3_050"),
        "ghostnetv3_5": build("ghostnetv3_050", reparam=ReparamSpec(branches=5, scale_1x1=False)),
        "mobilenetv2": build("mobilenetv2_050", reparam=ReparamSpec(branches=2)),
        "shufflenet": build("torchvision/shufflenet_v2_x0_5", reparam=ReparamSpec(branches=3)),
    }
    expected = {}
    for name, student in students.items():
        settled(student)
        save_file(fold(student).state_dict(), tmp_path / f"{name}.safetensors")
        with torch.no_grad():
            expected[name] = student(images())
    save_file({"images": images()}, tmp_path / "images.safetensors")
    subprocess.run([sys.executable, "-I", "-c", OPEN_IN_PLAIN_LIBRARIES], cwd=tmp_path, check=True)
    logits = load_file(tmp_path / "logits.safetensors")
    for name, student_logits in expected.items():
        assert_same(logits[name], student_logits)


@pytest.mark.parametrize(
    ("name", "deploys"),
    [("mobileone_s0", True), ("ghostnetv3_050", True), ("mobilenetv2_050", False)],
)
def test_the_source_of_a_folded_network_opens_what_fold_makes(name: str, deploys: bool) -> None:
    torch.manual_seed(0)
    folded = fold(build(name))
    imports, call = plain_source(name, num_classes=10, image_size=64, kwargs={})
    assert call.startswith("timm.utils.reparameterize_model(") is deploys
    opened = eval(call, {imports.removeprefix("import "): timm})
    opened.load_state_dict(folded.state_dict(), strict=True)


def test_ghostnetv3_left_alone_or_with_three_branches_is_timms_own() -> None:
    keys = list(timm.create_model("ghostnetv3_100", num_classes=10).state_dict())
    for reparam in (PLAIN, ReparamSpec(branches=3)):
        student = build("ghostnetv3_100", reparam=reparam)
        assert list(student.state_dict()) == keys
        assert student.training
        assert is_expanded(student)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"branches": 1, "scale_1x1": False, "identity": False},
        pytest.param({"branches": 3, "scale_1x1": False}, marks=pytest.mark.slow),
        pytest.param({"branches": 5}, marks=pytest.mark.slow),
    ],
)
def test_ghostnetv3_folds_to_6_148_million_parameters_from_any_branches(
    spec: dict[str, object],
) -> None:
    student = build(
        "ghostnetv3_100.in1k", num_classes=1000, reparam=ReparamSpec.model_validate(spec)
    )
    folded = fold(student)
    assert size_of(folded) == 6_147_588
    deployed = timm.utils.reparameterize_model(timm.create_model("ghostnetv3_100"))
    deployed.load_state_dict(folded.state_dict(), strict=True)


def test_ghostnetv3_by_surgery_is_the_network_that_timm_builds() -> None:
    torch.manual_seed(0)
    by_surgery = build("ghostnetv3_050", reparam=ReparamSpec(branches=3, gamma="inverse_sqrt"))
    assert size_of(by_surgery) == size_of(build("ghostnetv3_050"))
    narrower = build("ghostnetv3_050", reparam=ReparamSpec(branches=3, scale_1x1=False))
    assert size_of(narrower) < size_of(by_surgery)
    folded = fold(settled(by_surgery))
    deployed = timm.utils.reparameterize_model(timm.create_model("ghostnetv3_050", num_classes=10))
    deployed.load_state_dict(folded.state_dict(), strict=True)
    with torch.no_grad():
        assert_same(deployed.eval()(images()), by_surgery(images()))


@pytest.mark.parametrize("name", ["ghostnetv2_100", "ghostnet_050"])
def test_other_ghostnets_get_branches_at_the_papers_three_places_too(name: str) -> None:
    """As `--set student.model=ghostnetv2_100` on GhostNetV3's recipe asks."""

    def expanded(**spec: object) -> set[str]:
        student = build(name, reparam=ReparamSpec.model_validate({"branches": 3, **spec}))
        return {part for part, module in student.named_modules() if isinstance(module, Branches)}

    three = expanded()
    places = ("primary_conv", "cheap_operation", "conv_dw")
    assert all(any(place in part for place in places) for part in three)
    assert expanded(select=places) == three < expanded(select=("*",))


def test_ghostnetv2_in_training_is_as_large_as_timms_ghostnetv3() -> None:
    student = build("ghostnetv2_100", num_classes=1000, reparam=ReparamSpec(branches=3))
    assert size_of(student) == size_of(timm.create_model("ghostnetv3_100"))


def test_ghostnetv3_has_no_dropout_unless_it_is_asked_for() -> None:
    assert build("ghostnetv3_050").drop_rate == 0.0
    assert build("ghostnetv3_050", reparam=ReparamSpec(branches=1)).drop_rate == 0.0
    assert build("ghostnetv3_050", kwargs={"drop_rate": 0.3}).drop_rate == 0.3
    assert build("ghostnetv2_100").drop_rate == 0.2  # other models: as timm has them


@pytest.mark.parametrize(
    ("recipe", "spared"),
    [
        ("mobilenetv2-1.0x-imagenet-ours", {"conv_stem", "conv_head"}),
        ("shufflenetv2-1.0x-imagenet-ours", {"conv1.0", "conv5.0"}),
    ],
)
def test_the_recipes_of_other_students_spare_stem_and_last_convolution(
    recipe: str, spared: set[str]
) -> None:
    ours = load_recipe(Path(recipe), StudentRecipe, package="student")
    plain = load_recipe(Path(recipe.replace("ours", "plain")), StudentRecipe, package="student")
    assert (plain.distill.alpha, plain.reparam.branches) == (0.0, None)
    baseline = build(plain.student.model)
    expanded, expansion = expand(baseline, ours.reparam, images(1))
    assert set(expansion.left_alone) == spared
    assert set(expansion.left_alone.values()) == {"no pattern of reparam.select matches it"}
    assert list(fold(expanded).state_dict()) == list(baseline.state_dict())


@pytest.mark.parametrize(
    ("name", "size"),
    [("deit_tiny_patch16_224", 64), ("resnet10t", 32), ("torchvision/mobilenet_v2", 48)],
)
def test_any_classifier_runs_at_the_datas_size_with_the_datas_classes(name: str, size: int) -> None:
    student = build(name, num_classes=7, image_size=size)
    assert student.training
    assert student(torch.randn(2, 3, size, size)).shape == (2, 7)


def test_kwargs_reach_the_constructor() -> None:
    student = build("torchvision/mobilenet_v2", kwargs={"width_mult": 0.5})
    assert size_of(student) < size_of(build("torchvision/mobilenet_v2"))


def test_the_same_seed_builds_the_same_student() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        student = build("mobilenetv3_small_050", reparam=ReparamSpec(branches=2))
        states.append(student.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("ghostnetv3_10", "ghostnetv3_100"),
        ("mobilenet_v2_100", "mobilenetv2_100"),
        ("torchvision/shufflenet_v2_x1", "torchvision/shufflenet_v2_x1_0"),
        ("nothing like it", "did you mean "),
    ],
)
def test_an_unknown_name_is_refused_with_close_ones(name: str, suggestion: str) -> None:
    with pytest.raises(UnknownModel, match=suggestion):
        build(name)
    with pytest.raises(UnknownModel, match=suggestion):
        build(name, reparam=ReparamSpec(branches=2))


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("resnet10t", {"kwargs": {"colour": "red"}}, r"colour = 'red'.* unexpected keyword"),
        ("torchvision/mobilenet_v2", {"kwargs": {"depth": 3}}, r"depth = 3.* unexpected keyword"),
        ("resnet10t", {"kwargs": {"num_classes": 5}}, r"num_classes = 5, expected .*10 classes"),
        ("resnet10t", {"kwargs": {"in_chans": 1}}, "does not run on RGB images of 64 px"),
        ("vit_tiny_patch16_224", {"kwargs": {"global_pool": ""}}, r"expected \(1, 10\)"),
        ("resnet10t.no_such_tag", {}, "Invalid pretrained tag"),
        ("ghostnetv3_050", {"image_size": 32}, "does not run on RGB images of 32 px"),
        (
            "ghostnetv3_100",
            {"kwargs": {"pretrained": True}, "reparam": ReparamSpec(branches=5)},
            r"pretrained with three branches.* set reparam.branches = 3",
        ),
        ("deit_tiny_patch16_224", {"reparam": ReparamSpec(branches=3)}, "nothing to expand"),
    ],
)
def test_what_cannot_be_built_is_refused(
    name: str, changed: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build(name, **changed)
