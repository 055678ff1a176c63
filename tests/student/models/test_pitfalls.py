"""How the parts behave that training is built from: docs/paper.md, 'Traps of the parts'.

Should an upgrade change one of these, the page and the recipes must change with it.
"""

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from teacher_cache.networks.reparam import ReparamSpec, expand, fold


def stepped(weights, gradients, *, steps=1, **kwargs):
    """Parameters after steps of timm's LAMB with a constant gradient, and the optimizer."""
    module = nn.ParameterList([nn.Parameter(weight.clone()) for weight in weights])
    optimizer = create_optimizer_v2(module, opt="lamb", lr=0.1, **{"weight_decay": 0.0} | kwargs)
    for _ in range(steps):
        for parameter, gradient in zip(module, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [parameter.detach() for parameter in module], optimizer


def test_lamb_holds_the_global_gradient_norm_at_one():
    weight, gradient = torch.ones(10, 10), torch.full((10, 10), 31.6)
    (_,), optimizer = stepped([weight], [gradient])
    (state,) = optimizer.state.values()
    first_moment = state["exp_avg"].norm() / (1 - 0.9)  # beta1 is 0.9
    torch.testing.assert_close(first_moment, torch.tensor(1.0), rtol=1e-3, atol=0.0)


def test_lamb_moves_matrices_in_proportion_to_their_size_and_vectors_not():
    def moved(weight):
        (after,), _ = stepped([weight], [torch.ones_like(weight)], weight_decay=0.05)
        return float((after - weight).norm())

    matrix, vector = torch.ones(10, 10), torch.ones(100)
    assert 90 < moved(100 * matrix) / moved(matrix) < 110
    assert 0.99 < moved(100 * vector) / moved(vector) < 1.01


def test_lamb_decays_no_biases_and_no_batchnorm_weights():
    weights = [torch.ones(4, 4), torch.ones(4)]
    nothing = [torch.zeros(4, 4), torch.zeros(4)]
    (matrix, vector), _ = stepped(weights, nothing, weight_decay=0.05)
    assert float((matrix - 1).abs().max()) > 1e-3
    assert torch.equal(vector, torch.ones(4))


def test_lamb_ignores_momentum():
    weight, gradient = torch.ones(4, 4), torch.arange(16.0).view(4, 4)
    (plain,), _ = stepped([weight], [gradient], steps=3)
    (asked,), _ = stepped([weight], [gradient], steps=3, momentum=0.5)
    assert torch.equal(plain, asked)


def test_an_average_of_0_9999_keeps_nine_tenths_of_the_start_after_1000_steps():
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    average = ModelEmaV3(network, decay=0.9999)
    for step in range(1_002):
        if step == 2:  # the first two updates copy the network
            nn.init.zeros_(network.weight)
        average.update(network, step=step)
    assert 0.90 < float(average.module.weight.detach()) < 0.91


def test_the_averages_warm_up_never_reaches_0_9999_in_the_papers_run():
    average = ModelEmaV3(nn.Linear(1, 1), decay=0.9999, use_warmup=True)
    updates = 600 * (1_281_167 // 2_048)
    assert 0.9998 <= average.get_decay(updates) < 0.9999
    assert average.get_decay(1_100_000) == 0.9999


def test_the_average_holds_batchnorms_statistics_too_and_is_folded_last():
    torch.manual_seed(0)
    example = torch.randn(16, 3, 32, 32, dtype=torch.float64)
    labels = torch.arange(16) % 3
    plain = timm.create_model("test_efficientnet", num_classes=3).double()
    network, _ = expand(plain, ReparamSpec(branches=2), example[:1])
    average = ModelEmaV3(network, decay=0.5)
    folded = [fold(network)]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network.train()(example), labels).backward()
        optimizer.step()
        average.update(network, step=step)
        folded.append(fold(network))
    name = next(name for name, _ in network.named_buffers() if name.endswith("running_var"))
    statistics = average.module.state_dict()[name]
    assert not torch.allclose(statistics, torch.ones_like(statistics))
    assert not torch.allclose(statistics, network.state_dict()[name])
    with torch.inference_mode():
        expected = average.module.eval()(example)
        right = fold(average.module)(example)
        wrong = averaged(folded)(example)
    torch.testing.assert_close(right, expected, rtol=1e-9, atol=1e-11)
    assert float((wrong - expected).abs().max()) > 1e6 * float((right - expected).abs().max())


def averaged(networks):
    """What averaging folded networks with decay 0.5 would give."""
    average = ModelEmaV3(networks[0], decay=0.5)
    for network in networks[1:]:
        average.update(network)
    return average.module.eval()
