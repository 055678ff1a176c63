"""`cli.py models`: counts that can be done by hand, and published figures with their sources."""

import json
import time

import pytest
import timm
import torch
import torchvision
from torch import nn

from student.models.latency import latencies_ms
from student.models.published import ROWS, TABLE_9, agrees, in_units
from student.models.size import multiply_adds, parameter_count
from student.models.survey import survey
from teacher_cache.networks.libraries import TORCHVISION


class Counted(nn.Module):
    """A convolution, an attention and a linear layer whose multiply-adds are counted by hand."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        tokens = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        tokens = nn.functional.scaled_dot_product_attention(*(tokens[:, None],) * 3)[:, 0]
        return self.head(tokens.mean(1))


def test_multiply_adds_are_those_of_convolutions_products_and_attention():
    network = Counted()
    conv = 6 * 4 * 4 * (1 * 3 * 3)  # outputs times inputs of each
    attention = 2 * 16 * 16 * 6  # queries on keys, weights on values
    assert multiply_adds(network, size=8) == conv + attention + 6 * 5
    assert parameter_count(network) == 6 * 9 + 6 + 12 + 35
    assert network.training


@pytest.mark.parametrize("name", ["pit_ti_224", "torchvision/googlenet", "mobileone_s0"])
def test_networks_that_other_counters_stumble_over_are_counted(name):
    (found,) = survey([name], timed=False)
    assert found.params > 10**6
    assert found.macs > 10**8
    assert (found.params < found.params_training) is (name == "mobileone_s0")


def test_ghostnetv3_has_the_papers_size_but_for_the_smallest_whose_note_says_so():
    small, full = survey(["ghostnetv3_050", "ghostnetv3_100"], timed=False)
    assert (small.params, small.macs) == (2_853_176, 49_640_656)
    assert small.note == "parameters and multiply-adds differ"
    assert (full.params, full.macs) == (6_147_588, 167_048_288)
    assert (full.params_training, full.macs_training) == (8_129_028, 404_128_320)
    assert full.note == ""
    assert full.latency_ms is None


@pytest.mark.parametrize(
    ("count", "printed", "expected"),
    [
        (6_147_588, "6.1M", True),
        (6_150_001, "6.1M", False),
        (2_853_176, "2.7M", False),
        (1_253_683_200, "1258M", False),
    ],
)
def test_a_count_agrees_with_a_figure_up_to_the_last_digit_printed(count, printed, expected):
    assert agrees(count, printed) is expected


def test_every_published_figure_has_a_source_and_every_model_exists():
    names = {TORCHVISION + name for name in torchvision.models.list_models()}
    for row in ROWS:
        assert row.model is None or timm.is_model(row.model) or row.model in names
        assert row.published.source == TABLE_9
        assert 60 < row.published.top1 < 85
        assert row.published.top5 is None or row.published.top1 < row.published.top5 < 100
        assert 1e6 < in_units(row.published.params) < in_units(row.published.macs)
        assert 0 < row.published.cpu_ms < row.published.phone_ms
    assert len({row.label for row in ROWS}) == 43


def test_the_command_prints_a_table_and_json_of_the_same(cli):
    printed = cli("models", "mobilenetv3_small_050", "--latency").stdout
    own = timm.create_model("mobilenetv3_small_050")
    assert f"| mobilenetv3_small_050 | {parameter_count(own) / 1e6:.3f} " in printed
    assert "latency: median of 100 runs, folded, one thread of" in printed
    (found,) = json.loads(cli("models", "ghostnetv3_050", "--json").stdout)
    assert (found["model"], found["params"], found["latency_ms"]) == (
        "ghostnetv3_050",
        2_853_176,
        None,
    )
    assert found["paper"]["top1"] == 69.4
    assert (found["paper"]["params"], found["paper"]["macs"]) == (2_700_000, 48_000_000)
    assert set(found) >= {"params_training", "macs_training"}
    assert "did you mean ghostnetv3_050" in cli("models", "ghostnetv3_05", check=1).stderr


@pytest.mark.slow
def test_models_of_which_only_papers_tell_say_so(cli):
    found = {model["label"]: model for model in json.loads(cli("models", "--json").stdout)}
    assert len(found) == len(ROWS) == 43
    only = found["Mobileformer-508"]
    assert (only["params"], only["note"]) == (None, "published figures only")
    assert only["paper"]["phone_ms"] == 163.39
    ours = found["MobileNetV2 1.0x + ours"]
    plain = found["MobileNetV2 1.0x"]
    assert ours["params"] == plain["params"] == plain["params_training"] < ours["params_training"]


class Sleeping(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def forward(self, x):
        assert not self.training
        assert torch.get_num_threads() == 1
        time.sleep(self.seconds)
        return x


def test_latency_is_the_median_of_turns_on_one_thread():
    short, long = Sleeping(0.001), Sleeping(0.004)
    torch.set_num_threads(2)
    try:
        found_short, found_long = latencies_ms([short, long], size=8, runs=9)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert 1.0 <= found_short < found_long
    assert found_long >= 4.0
    assert short.training
