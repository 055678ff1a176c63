"""expand and fold: fold(m)(x) = m(x), for every model family, and the original's own keys."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.norm_act import BatchNormAct2d
from timm.optim import Lamb
from torch import Tensor, nn

from teacher_cache.networks.branches import Branches, Folded
from teacher_cache.networks.reparam import (
    Expansion,
    ReparamError,
    ReparamSpec,
    expand,
    fold,
    is_expanded,
)

GHOSTNETV3_SELECT = ("primary_conv", "cheap_operation", "conv_dw")

SMALL: dict[str, Callable[[], nn.Module]] = {
    "timm MobileNetV2": lambda: timm.create_model("mobilenetv2_050", num_classes=10),
    "timm MobileNetV3": lambda: timm.create_model("mobilenetv3_small_050", num_classes=10),
    "timm GhostNet": lambda: timm.create_model("ghostnet_050", num_classes=10, drop_rate=0.0),
    "timm GhostNetV2": lambda: timm.create_model(
        "ghostnet_050", version="v2", num_classes=10, drop_rate=0.0
    ),
    "torchvision MobileNetV2": lambda: torchvision.models.mobilenet_v2(
        num_classes=10, width_mult=0.35, dropout=0.0
    ),
    "torchvision ShuffleNetV2": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=10),
}

FULL: dict[str, Callable[[], nn.Module]] = {
    "timm MobileNetV2": lambda: timm.create_model("mobilenetv2_100"),
    "timm MobileNetV3": lambda: timm.create_model("mobilenetv3_large_100"),
    "timm GhostNet": lambda: timm.create_model("ghostnet_100", drop_rate=0.0),
    "timm GhostNetV2": lambda: timm.create_model("ghostnetv2_100", drop_rate=0.0),
    "torchvision MobileNetV2": lambda: torchvision.models.mobilenet_v2(dropout=0.0),
    "torchvision ShuffleNetV2": lambda: torchvision.models.shufflenet_v2_x1_0(),
}


def images(rows: int = 32, size: int = 64, seed: int = 1) -> Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(seed))


def size_of(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def settle(model: nn.Module, x: Tensor) -> nn.Module:
    """Trained-looking BatchNorms: unlike weights, and the statistics that they make.

    Without the statistics every channel's signal collapses layer by layer, all images get the
    same logits, and any two models would seem equal.
    """
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
            if module.affine:
                with torch.no_grad():
                    module.weight.uniform_(0.7, 1.3, generator=generator)
                    module.bias.normal_(0.0, 0.1, generator=generator)
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def expanded(
    model: nn.Module, branches: int, folded: Folded = Folded.CONV_BN, **fields: object
) -> tuple[nn.Module, Expansion]:
    spec = ReparamSpec.model_validate({"branches": branches, **fields})
    return expand(model, spec, images(1), folded=folded)


@torch.no_grad()
def assert_folds(model: nn.Module, x: Tensor) -> nn.Module:
    """Both forms agree in float64 and float32, for batches and single images; the folded form."""
    folded = fold(model)
    logits = model(x)
    spread = logits.std(dim=0).mean()
    assert spread > 0.02, "the images get the same logits: equality would say nothing"
    # float32 rounds to about this by itself: the unfolded model is as far from its float64 self.
    tolerance = 1e-4 * max(1.0, float(logits.abs().max()))
    assert (folded(x) - logits).abs().max() <= tolerance
    assert (folded(x[:1]) - model(x[:1])).abs().max() <= tolerance
    double = copy.deepcopy(model).double()
    folded_double = fold(double)
    for rows in (x.double(), x[:1].double()):
        assert (folded_double(rows) - double(rows)).abs().max() <= 1e-10
    return folded


@pytest.mark.parametrize(
    ("family", "branches"),
    [
        ("timm MobileNetV2", 3),
        ("timm MobileNetV3", 2),
        ("timm GhostNet", 1),
        ("timm GhostNetV2", 3),
        ("torchvision MobileNetV2", 4),
        ("torchvision ShuffleNetV2", 5),
    ],
)
def test_a_folded_model_is_the_expanded_one_and_has_the_originals_keys(
    family: str, branches: int
) -> None:
    torch.manual_seed(0)
    plain = SMALL[family]()
    model, _ = expanded(plain, branches)
    assert size_of(model) > size_of(plain)
    folded = assert_folds(settle(model, images()), images(4, seed=3))
    assert list(folded.state_dict()) == list(plain.state_dict())
    assert size_of(folded) == size_of(plain)
    plain.load_state_dict(folded.state_dict(), strict=True)
    assert not is_expanded(folded)


@pytest.mark.slow
@pytest.mark.parametrize("branches", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("family", FULL)
def test_every_family_folds_at_full_width_for_every_number_of_branches(
    family: str, branches: int
) -> None:
    torch.manual_seed(branches)
    plain = FULL[family]()
    model, _ = expanded(plain, branches)
    folded = assert_folds(settle(model, images()), images(4, seed=3))
    assert list(folded.state_dict()) == list(plain.state_dict())
    assert size_of(folded) == size_of(plain)


@pytest.mark.slow
@pytest.mark.parametrize("width", ["050", "100", "130", "160"])
def test_timms_own_ghostnetv3_folds_at_every_width(width: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(f"ghostnetv3_{width}", drop_rate=0.0)
    assert_folds(settle(model, images()), images(4, seed=3))


def assert_folded_in_float64(model: nn.Module) -> None:
    """The folded float32 weights are the folded float64 ones, rounded once."""
    exact = fold(copy.deepcopy(model).double()).state_dict()
    for name, value in fold(model).state_dict().items():
        assert torch.equal(value, exact[name].to(value.dtype)), name


def test_our_branches_fold_in_float64_whatever_the_models_precision() -> None:
    torch.manual_seed(0)
    model, _ = expanded(SMALL["timm MobileNetV3"](), 3)
    assert_folded_in_float64(settle(model, images()))


def test_timms_own_ghostnetv3_folds_and_stays_trainable() -> None:
    torch.manual_seed(0)
    model = timm.create_model("ghostnetv3_050", num_classes=10, drop_rate=0.0)
    folded = assert_folds(settle(model, images()), images(4, seed=3))
    assert is_expanded(model)
    assert not is_expanded(folded)
    assert_folded_in_float64(model)
    deployed = timm.utils.reparameterize_model(model)
    assert list(folded.state_dict()) == list(deployed.state_dict())
    assert_every_weight_gets_a_gradient(folded)


def test_the_surgery_on_ghostnetv2_has_exactly_the_parameters_of_timms_ghostnetv3() -> None:
    model, report = expanded(timm.create_model("ghostnetv2_100"), 3, select=GHOSTNETV3_SELECT)
    assert size_of(model) == size_of(timm.create_model("ghostnetv3_100")) == 8_129_028
    # 16 bottlenecks of two ghost modules, two pairs each, and 4 depth-wise ones with stride 2.
    assert len(report.expanded) == 68
    names = {name for one in report.expanded for name in one.conv.split(".")}
    assert not names & {"short_conv", "shortcut", "conv_stem", "conv_head"}
    assert "no pattern of reparam.select" in report.left_alone["blocks.3.0.ghost1.short_conv.0"]
    assert report.left_alone["conv_head"] == "it has a bias"


def test_the_plain_bias_form_has_the_parameters_of_timms_deployed_ghostnetv3() -> None:
    plain = timm.create_model("ghostnetv2_100")
    model, _ = expanded(plain, 1, Folded.CONV_BIAS, select=GHOSTNETV3_SELECT)
    deployed = timm.utils.reparameterize_model(timm.create_model("ghostnetv3_100"))
    assert size_of(fold(model)) == size_of(deployed) == 6_147_588
    assert set(fold(model).state_dict()) == set(deployed.state_dict())


@st.composite
def conv_norm_pairs(draw: st.DrawFn) -> nn.Sequential:
    """Convolutions of every shape: even, dilated, strided, grouped, multiplied, padded."""
    groups = draw(st.sampled_from([1, 2, 4]))
    kernel = draw(st.sampled_from([1, 2, 3, 5, (1, 5), (5, 1), (3, 2)]))
    conv = nn.Conv2d(
        4,
        draw(st.sampled_from([4, 8])),
        kernel,
        stride=draw(st.sampled_from([1, 2, (1, 2)])),
        padding=draw(st.sampled_from([0, 1, 2, (0, 2), (2, 0)])),
        dilation=draw(st.sampled_from([1, 2])),
        groups=groups,
        bias=False,
    )
    norm = BatchNormAct2d if draw(st.booleans()) else nn.BatchNorm2d
    return nn.Sequential(conv, norm(conv.out_channels, eps=draw(st.sampled_from([1e-5, 1e-2]))))


@given(
    conv_norm_pairs(),
    st.integers(1, 5),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["independent", "warm_start"]),
    st.sampled_from(Folded),
    st.integers(0, 1000),
)
@settings(deadline=None, max_examples=150)
def test_any_convolution_folds_exactly(
    pair: nn.Sequential,
    branches: int,
    scale_1x1: bool,
    identity: bool,
    init: str,
    folded: Folded,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    pair = pair.double()
    x = torch.randn(8, 4, 13, 13, dtype=torch.float64)
    settle(pair, x)
    spec = ReparamSpec.model_validate(
        {"branches": branches, "scale_1x1": scale_1x1, "identity": identity, "init": init}
    )
    try:
        model, _ = expand(pair, spec, x[:1], folded=folded)
    except ReparamError as error:
        assert "one branch is the convolution itself" in str(error)
        return
    settle(model, x)
    once = fold(model)
    with torch.no_grad():
        assert once(x).std() > 0.1
        torch.testing.assert_close(once(x), model(x), rtol=0.0, atol=1e-10)
        torch.testing.assert_close(fold(once)(x), once(x), rtol=0.0, atol=0.0)


def test_a_further_branch_joins_only_where_its_shape_fits() -> None:
    def extras(conv: nn.Conv2d) -> tuple[bool, bool]:
        pair = nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))
        _, report = expand(pair, ReparamSpec(branches=2), torch.zeros(1, 4, 9, 9))
        (one,) = report.expanded
        return one.scale_1x1, one.identity

    def conv(*args: int, **kwargs: int) -> nn.Conv2d:
        return nn.Conv2d(*args, bias=False, **kwargs)

    assert extras(conv(4, 4, 3, padding=1, groups=4)) == (True, True)
    assert extras(conv(4, 4, 3, padding=2, dilation=2, groups=4)) == (True, True)
    assert extras(conv(4, 4, 3, padding=1, groups=4, stride=2)) == (True, False)
    assert extras(conv(4, 8, 3, padding=1, groups=4)) == (True, False)
    assert extras(conv(4, 4, 3, padding=1)) == (False, True)
    assert extras(conv(4, 4, 1)) == (False, True)
    assert extras(conv(4, 4, 1, groups=4)) == (False, True)
    assert extras(conv(4, 8, 1)) == (False, False)
    assert extras(conv(4, 4, 3, groups=4)) == (False, False)
    assert extras(conv(4, 4, 2, padding=1, groups=4)) == (False, False)


class Oddities(nn.Module):
    """One convolution for every reason to leave it alone, and one that is fine."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.fine_norm = nn.BatchNorm2d(3)
        self.biased = nn.Conv2d(3, 3, 3, padding=1)
        self.reflecting = nn.Conv2d(3, 3, 3, padding=1, bias=False, padding_mode="reflect")
        self.same = nn.Conv2d(3, 3, 3, padding="same", bias=False)
        self.bare = nn.Conv2d(3, 3, 1, bias=False)
        self.branching = nn.Conv2d(3, 3, 1, bias=False)
        self.twice = nn.Conv2d(3, 3, 1, bias=False)
        self.two_names = nn.Conv2d(3, 3, 1, bias=False)
        self.alias = self.two_names
        self.unused = nn.Conv2d(3, 3, 1, bias=False)
        self.without_weights = nn.Conv2d(3, 3, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(3, affine=index != 7) for index in range(8))
        self.shared = nn.Conv2d(3, 3, 1, bias=False)
        self.shared_norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fine_norm(self.fine(x))
        x = self.norms[0](self.biased(x))
        x = self.norms[1](self.reflecting(x))
        x = self.norms[2](self.same(x))
        x = self.bare(x).relu()
        before = self.branching(x)
        x = self.norms[3](before) + before
        x = self.norms[5](self.twice(self.norms[4](self.twice(x))))
        x = self.norms[6](self.two_names(x))
        x = self.norms[7](self.without_weights(x))
        x = self.shared_norm(self.shared(x))
        return self.shared_norm(x)


def test_what_cannot_be_expanded_is_left_alone_with_its_reason() -> None:
    torch.manual_seed(0)
    plain = Oddities()
    model, report = expand(plain, ReparamSpec(branches=2), images(1, 8))
    assert [one.conv for one in report.expanded] == ["fine"]
    assert dict(report.left_alone) == {
        "biased": "it has a bias",
        "reflecting": "its padding is reflect (1, 1), not a number of zeros",
        "same": "its padding is zeros same, not a number of zeros",
        "bare": "no BatchNorm follows",
        "branching": "its output goes elsewhere too, not only into the BatchNorm",
        "twice": "it is used more than once",
        "two_names": "it is used more than once",
        "unused": "the forward pass does not call it",
        "without_weights": "its BatchNorm has no weights or no running statistics",
        "shared": "its BatchNorm is used more than once",
    }
    assert_folds(settle(model, images(32, 8)), images(4, 8))


def test_tf_same_padding_and_weight_standardisation_are_left_alone() -> None:
    _, report = expanded(timm.create_model("tf_mobilenetv3_small_minimal_100"), 2)
    assert report.left_alone["conv_stem"] == "it is a Conv2dSame, not a plain Conv2d"
    with pytest.raises(ReparamError, match=r"nothing to expand .*ScaledStdConv2d, not a plain"):
        expanded(timm.create_model("nf_regnet_b0"), 2)


def test_neither_expand_nor_fold_changes_the_model_it_is_given() -> None:
    torch.manual_seed(0)
    plain = SMALL["timm MobileNetV3"]().train()
    plain.blocks[0].eval()
    before = copy.deepcopy(plain.state_dict())
    modes = [module.training for module in plain.modules()]
    model, _ = expanded(plain, 2)
    settle(model, images(8)).train()
    inside = copy.deepcopy(model.state_dict())
    folded = fold(model)
    assert not any(module.training for module in folded.modules())
    assert all(module.training for module in model.modules())
    assert [module.training for module in plain.modules()] == modes
    for state, model_ in ((before, plain), (inside, model)):
        for name, value in model_.state_dict().items():
            assert torch.equal(value, state[name])
    assert is_expanded(model)


def test_an_expanded_model_keeps_the_modes_of_its_parts() -> None:
    plain = SMALL["timm MobileNetV3"]().train()
    plain.blocks[0].eval()
    model, _ = expanded(plain, 2)
    assert not any(module.training for module in model.blocks[0].modules())
    assert all(module.training for module in model.blocks[1].modules())


def assert_every_weight_gets_a_gradient(model: nn.Module) -> None:
    model.train()
    model(images(8)).square().mean().backward()
    silent = [n for n, w in model.named_parameters() if w.grad is None or not w.grad.any()]
    assert silent == []


@pytest.mark.parametrize("folded", Folded)
def test_expanded_and_folded_weights_all_get_gradients(folded: Folded) -> None:
    torch.manual_seed(0)
    model, _ = expanded(SMALL["timm GhostNetV2"](), 2, folded, select=GHOSTNETV3_SELECT)
    assert_every_weight_gets_a_gradient(model)
    model.zero_grad()
    assert_every_weight_gets_a_gradient(fold(model))


@pytest.mark.parametrize("family", ["timm MobileNetV2", "torchvision ShuffleNetV2"])
def test_a_folded_model_in_train_mode_computes_what_the_expanded_one_does(family: str) -> None:
    torch.manual_seed(0)
    model, _ = expanded(SMALL[family](), 3)
    x = images()
    settle(model, x)
    folded = fold(model)
    with torch.no_grad():
        expected = model.train()(x)
        off = (folded.train()(x) - expected).abs().max()
    # Not equal: running variances divide by n - 1, and n is 32 times 2 x 2 pixels at the end.
    assert off < 0.1 * expected.std(dim=0).mean()


def test_independent_branches_differ_and_the_first_is_the_models_own() -> None:
    torch.manual_seed(0)
    plain = SMALL["timm MobileNetV2"]()
    model, report = expanded(plain, 3, gamma="inverse_sqrt")
    one = next(one for one in report.expanded if one.scale_1x1 and one.identity)
    branches = model.get_submodule(one.conv)
    assert isinstance(branches, Branches)
    weights = [part.conv.weight for part in branches.convs]
    own = plain.get_submodule(one.conv).weight
    assert torch.equal(weights[0], own)
    for other in weights[1:]:
        assert (other - own).abs().max() > own.std()
        assert other.square().mean().item() == pytest.approx(own.square().mean().item(), rel=1e-4)
    for norm in [part.norm for part in branches.convs] + [branches.scale.norm, branches.identity]:
        torch.testing.assert_close(norm.weight, torch.full_like(norm.weight, 5**-0.5))


def test_a_warm_start_is_the_models_own_function_and_its_branches_part() -> None:
    torch.manual_seed(0)
    plain = settle(SMALL["timm MobileNetV2"](), images()).double()
    model, report = expand(plain, ReparamSpec(branches=3, init="warm_start"), images(1).double())
    x = images(4, seed=3).double()
    with torch.no_grad():
        assert plain(x).std(dim=0).mean() > 0.02
        assert (model(x) - plain(x)).abs().max() < 1e-10
    weights = [part.conv.weight for part in model.get_submodule(report.expanded[3].conv).convs]
    assert not torch.equal(weights[0], weights[1])


def test_a_warm_start_computes_much_the_same_in_train_mode_too() -> None:
    torch.manual_seed(0)
    x = images()
    plain = settle(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)), x)
    model, _ = expand(plain, ReparamSpec(branches=4, init="warm_start"), x[:1])
    with torch.no_grad():
        expected = plain.train()(x)
        off = (model.train()(x) - expected).abs().max()
    assert off < 0.05 * expected.std()  # the noise changes the branches' own variances a little


@pytest.mark.parametrize("init", ["independent", "warm_start"])
def test_branches_part_under_lamb_where_copies_never_do(init: str) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten())
    model, _ = expand(plain, ReparamSpec(branches=2, init=init), images(1, 8))
    copies = copy.deepcopy(model)
    copies[0].convs[1] = copy.deepcopy(copies[0].convs[0])

    def parting(model: nn.Module) -> float:
        first, second = (part.conv.weight.detach() for part in model[0].convs)
        return float((first - second).abs().max())

    def parting_after_training(model: nn.Module) -> float:
        optimizer = Lamb(model.parameters(), lr=0.01, weight_decay=0.05)
        for step in range(10):
            optimizer.zero_grad()
            model(images(8, 8, seed=step)).relu().square().mean().backward()
            optimizer.step()
        return parting(model)

    assert parting_after_training(copies) == 0.0
    start = parting(model)
    assert start > 0.0
    assert parting_after_training(model) != pytest.approx(start, rel=1e-3)


def test_the_same_seed_gives_the_same_branches() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(expanded(SMALL["torchvision ShuffleNetV2"](), 3)[0].state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_selected_parts_are_expanded_and_no_others() -> None:
    _, report = expanded(SMALL["timm MobileNetV2"](), 2, select=("conv_dw", "blocks.0.0.conv_p*"))
    names = [one.conv for one in report.expanded]
    assert "blocks.0.0.conv_pw" in names
    assert all(name.endswith("conv_dw") or name.startswith("blocks.0.0.conv_p") for name in names)
    assert report.left_alone["conv_stem"] == "no pattern of reparam.select matches it"


def test_no_branches_leave_the_model_as_it_is() -> None:
    plain = SMALL["timm GhostNet"]()
    model, report = expand(plain, ReparamSpec(), images(1))
    assert model is plain
    assert report == Expansion(expanded=(), left_alone={})
    with torch.no_grad():
        assert torch.equal(fold(plain)(images(2)), plain.eval()(images(2)))


def test_expanding_twice_is_refused() -> None:
    model, _ = expanded(SMALL["torchvision ShuffleNetV2"](), 2)
    with pytest.raises(ReparamError, match=r"has training branches already, .* fold it first"):
        expanded(model, 2)
    with pytest.raises(ReparamError, match=r"has training branches already, .* fold it first"):
        expanded(timm.create_model("ghostnetv3_050"), 2)


def test_a_pattern_that_matches_nothing_is_refused_with_names_that_exist() -> None:
    with pytest.raises(ReparamError, match=r"'conv_dv', which matches no .* are conv_stem, "):
        expanded(SMALL["timm MobileNetV2"](), 2, select=("conv_dw", "conv_dv"))


def test_a_model_with_nothing_to_expand_is_refused_with_the_reasons() -> None:
    transformer = timm.create_model("deit_tiny_patch16_224", img_size=64, depth=1)
    with pytest.raises(ReparamError, match=r"nothing to expand \(it has a bias \(1\)\)"):
        expanded(transformer, 3)
    with pytest.raises(ReparamError, match="one branch is the convolution itself"):
        expanded(SMALL["timm MobileNetV2"](), 1, scale_1x1=False, identity=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"branches": 0}, "branches is 0, expected 1 or more"),
        ({"branches": 2, "init": "warm_start", "gamma": "inverse_sqrt"}, "expected 'one'"),
        ({"branch": 2}, "Extra inputs are not permitted"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReparamSpec.model_validate(fields)
