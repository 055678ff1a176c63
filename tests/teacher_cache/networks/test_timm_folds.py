"""fold on the networks that timm re-parameterizes itself, against timm's own fold."""

import copy

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch import nn

from student.models.size import multiply_adds, parameter_count
from teacher_cache.networks.reparam import ReparamSpec, expand, fold, is_reparameterized_by_timm

FAMILIES = {
    "mobileone_s0": 64,
    "repvgg_a0": 64,
    "repvit_m0_9": 64,
    "fastvit_t8": 64,
    "repghostnet_050": 64,
    "efficientvit_m0": 224,
}
OTHERS = {
    "levit_128s": 224,
    "shvit_s1": 224,
    "iformer_t": 224,
    "efficientvim_m1": 224,
    "lcnetv2_small": 64,
    "tiny_vit_5m_224": 224,
    "nextvit_small": 64,
    "mobileone_s4": 64,
    "fastvit_mci0": 64,
}


def trained_looking(name: str) -> nn.Module:
    """Float64, with BatchNorms as after training, so that folding them wrongly shows."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).double()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.3, 0.3)
    return model.eval()


def assert_folds_as_timm_does(name: str, size: int) -> None:
    model = trained_looking(name)
    folded = fold(model)
    torch.set_default_dtype(torch.float64)  # or timm rounds to float32
    try:
        theirs = reparameterize_model(copy.deepcopy(model))
    finally:
        torch.set_default_dtype(torch.float32)
    assert list(folded.state_dict()) == list(theirs.state_dict())
    assert parameter_count(folded) < parameter_count(model)
    images = torch.randn(2, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        logits = model(images)
        tolerance = 1e-10 * float(logits.abs().max().clamp_min(1.0))
        torch.testing.assert_close(folded(images), logits, rtol=0.0, atol=tolerance)
        torch.testing.assert_close(folded(images), theirs(images), rtol=0.0, atol=tolerance)
    assert all(weight.requires_grad for weight in folded.parameters())
    for weight, exact in zip(
        fold(model.float()).state_dict().values(),
        fold(model.float().double()).state_dict().values(),
        strict=True,
    ):  # summed in float64, rounded once
        assert torch.equal(weight, exact.to(weight.dtype))


@pytest.mark.parametrize(("name", "size"), FAMILIES.items())
def test_what_timm_re_parameterizes_is_folded_as_timm_folds_it(name: str, size: int) -> None:
    assert_folds_as_timm_does(name, size)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), OTHERS.items())
def test_so_is_every_other_family_of_timms(name: str, size: int) -> None:
    assert_folds_as_timm_does(name, size)


def test_mobileone_s0_has_the_size_of_its_deployed_form() -> None:
    """MobileOne (arXiv 2206.04040), Table 9: 2.1M parameters, 275M multiply-adds."""
    folded = fold(timm.create_model("mobileone_s0"))
    assert round(parameter_count(folded) / 1e6, 2) == 2.08
    assert round(multiply_adds(folded, size=224) / 1e6) == 275


@pytest.mark.slow
def test_branches_of_ours_inside_timms_fold_too() -> None:
    model = trained_looking("mobileone_s0").float()
    images = torch.randn(2, 3, 64, 64)
    expanded, expansion = expand(model, ReparamSpec(branches=2, init="warm_start"), images[:1])
    assert len(expansion.expanded) > 20
    folded = fold(expanded)
    assert list(folded.state_dict()) == list(reparameterize_model(model).state_dict())
    with torch.no_grad():
        exact, found = fold(expanded.double())(images.double()), expanded(images.double())
    torch.testing.assert_close(exact, found, rtol=0.0, atol=1e-10 * float(found.abs().max()))


def test_a_network_that_timm_folds_nothing_of_is_told_apart() -> None:
    assert not is_reparameterized_by_timm(timm.create_model("mobilenetv2_050"))
    assert is_reparameterized_by_timm(timm.create_model("ghostnetv3_050"))
