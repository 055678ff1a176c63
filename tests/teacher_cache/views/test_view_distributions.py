"""Views are distributed as timm's and torchvision's own samples are."""

import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import RandomResizedCrop

from teacher_cache.pixels.render import crop_box, erase_box
from teacher_cache.views.policy import RAND_AUGMENT_INCREASING_OPS, RAND_AUGMENT_OPS, ViewPolicy
from teacher_cache.views.view import sample_view

PAPER = ViewPolicy()
# Seeds are fixed, so a p-value is a constant: below this the distributions differ.
P_VALUE = 1e-3
DRAWS = 20_000


def draw_views(policy=PAPER, count=DRAWS, seed=7):
    return [sample_view(policy, seed=seed, key=f"n01/{row}.jpg", view=3) for row in range(count)]


@pytest.fixture(scope="module")
def paper_views():
    return draw_views()


def p_same(ours, theirs):
    """The p-value that two samples come from one distribution (Kolmogorov-Smirnov)."""
    return stats.ks_2samp(ours, theirs, method="asymp").pvalue


def relative_boxes(boxes, width, height):
    """Columns of boxes (left, top, right, bottom): sides, area, log ratio, places in the room."""
    left, top, right, bottom = np.array(boxes, dtype=np.float64).T
    w, h = right - left, bottom - top
    # Ties in whole pixels are the same on both sides, so a test of these stays valid.
    return {
        "width": w,
        "height": h,
        "area": w * h,
        "ratio": np.log(w / h),
        "x": (left + 0.5) / (width - w + 1),
        "y": (top + 0.5) / (height - h + 1),
    }


@pytest.mark.parametrize(("width", "height"), [(500, 375), (300, 800)])
def test_crops_are_distributed_as_torchvisions(paper_views, width, height):
    torch.manual_seed(1)
    image = torch.empty(3, 1, 1).expand(3, height, width)
    theirs = []
    for _ in range(DRAWS):
        top, left, h, w = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
        theirs.append((left, top, left + w, top + h))
    ours = [crop_box(view.crops, width, height) for view in paper_views]
    theirs, ours = relative_boxes(theirs, width, height), relative_boxes(ours, width, height)
    for name, column in ours.items():
        assert p_same(column, theirs[name]) > P_VALUE, name


def test_crop_candidates_are_uniform_in_area_and_place(paper_views):
    for candidate in range(10):
        area, ratio, x, y = np.array([view.crops[candidate] for view in paper_views]).T
        uniforms = {
            "area": (area / 2**32 - 0.08) / 0.92,
            "ratio": np.log(ratio / 65536) / (2 * np.log(4 / 3)) + 0.5,
            "x": x / 2**32,
            "y": y / 2**32,
        }
        for name, column in uniforms.items():
            assert stats.kstest(column, "uniform").pvalue > P_VALUE / 40, (candidate, name)


def test_a_policys_smallest_area_is_kept():
    areas = [view.crops[0][0] / 2**32 for view in draw_views(ViewPolicy(min_area=0.5))]
    assert stats.kstest((np.array(areas) - 0.5) * 2, "uniform").pvalue > P_VALUE


@pytest.mark.parametrize(("field", "probability"), [("flip", 0.5), ("flip", 0.1), ("erase", 0.2)])
def test_flips_and_erasing_have_their_probability(field, probability):
    drawn = draw_views(ViewPolicy(**{field: probability}))
    count = sum(bool(getattr(view, field)) for view in drawn)
    assert stats.binomtest(count, DRAWS, probability).pvalue > P_VALUE


class RecordedRandAugment:
    """timm's own RandAugment, drawing as it does but recording instead of touching pixels."""

    def __init__(self, config):
        self.transform = rand_augment_transform(config, {"translate_const": 100})
        self.drawn = []
        for op in self.transform.ops:
            op.level_fn = lambda level, _: (level,)
            op.aug_fn = lambda image, level, op=op, **_: self.drawn[-1].append((op.name, level))

    def draw(self, count):
        random.seed(3)
        np.random.seed(4)  # noqa: NPY002 - timm draws from the global generator
        for _ in range(count):
            self.drawn.append([])
            self.transform(None)
        return self.drawn


@pytest.mark.parametrize(
    ("config", "policy"),
    [
        ("rand-m9-mstd0.5", PAPER),
        (
            "rand-m5-n3-mstd2.0-inc1-p0.8",
            ViewPolicy(
                magnitude=5, num_ops=3, magnitude_std=2, increasing=True, op_probability=0.8
            ),
        ),
    ],
)
def test_operations_and_levels_are_distributed_as_timms(config, policy):
    theirs = RecordedRandAugment(config).draw(DRAWS)
    ours = [[(op.name, op.level / 65536) for op in view.ops] for view in draw_views(policy)]

    counts = [Counter(map(len, drawn)) for drawn in (ours, theirs)]
    table = [[count[n] for n in range(policy.num_ops + 1)] for count in counts]
    assert stats.chi2_contingency(table).pvalue > P_VALUE

    flat_ours = [op for ops in ours for op in ops]
    flat_theirs = [op for ops in theirs for op in ops]
    names = [Counter(name for name, _ in flat) for flat in (flat_ours, flat_theirs)]
    assert set(names[0]) == set(names[1])
    table = [[count[name] for name in sorted(names[0])] for count in names]
    assert stats.chi2_contingency(table).pvalue > P_VALUE
    assert stats.chisquare(table[0]).pvalue > P_VALUE  # each of the fifteen as likely

    levels_ours, levels_theirs = ([lv for _, lv in flat] for flat in (flat_ours, flat_theirs))
    assert p_same(levels_ours, levels_theirs) > P_VALUE
    clipped = [sum(lv >= 10 for lv in levels) for levels in (levels_ours, levels_theirs)]
    totals = [len(levels_ours), len(levels_theirs)]
    table = [clipped, [total - count for total, count in zip(totals, clipped, strict=True)]]
    assert stats.chi2_contingency(table).pvalue > P_VALUE


def test_operations_are_drawn_with_replacement_and_independently():
    drawn = draw_views(ViewPolicy(op_probability=1))
    pairs = Counter((one.name, two.name) for one, two in (view.ops for view in drawn))
    table = [[pairs[one, two] for two in RAND_AUGMENT_OPS] for one in RAND_AUGMENT_OPS]
    assert stats.chisquare(np.ravel(table)).pvalue > P_VALUE


@pytest.mark.parametrize("increasing", [False, True])
def test_an_operation_is_negated_half_the_time_where_timm_has_a_sign_and_never_elsewhere(
    increasing,
):
    # With the default probability: a sign that follows from being applied would show here.
    drawn = draw_views(ViewPolicy(increasing=increasing))
    negated, total = Counter(), Counter()
    for view in drawn:
        for op in view.ops:
            total[op.name] += 1
            negated[op.name] += op.negate
    signed = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}
    if increasing:
        signed |= {f"{name}Increasing" for name in ("Color", "Contrast", "Brightness", "Sharpness")}
    assert {name for name in total if negated[name]} == signed
    for name in signed:
        assert stats.binomtest(negated[name], total[name], 0.5).pvalue > P_VALUE, name


class RecordedImage:
    """What timm's RandomErasing writes into: remembers the box instead."""

    box = None

    def __setitem__(self, place, _):
        _, rows, columns = place
        self.box = (columns.start, rows.start, columns.stop, rows.stop)


def test_erased_boxes_are_distributed_as_timms():
    size = 224
    random.seed(5)
    erasing = RandomErasing(probability=1, device="cpu")
    theirs = []
    for _ in range(DRAWS):
        image = RecordedImage()
        erasing._erase(image, 3, size, size, torch.float32)
        theirs.append(image.box)
    boxes = [view.erase for view in draw_views(ViewPolicy(erase=1))]
    # Ten candidates nearly always hold one that fits: neither side may leave out views.
    assert boxes.count(None) == theirs.count(None) == 0
    ours = relative_boxes([erase_box(box, size) for box in boxes], size, size)
    for name, column in relative_boxes(theirs, size, size).items():
        assert p_same(ours[name], column) > P_VALUE, name


def test_no_two_decisions_of_a_view_share_a_word():
    # Reading a word twice would correlate two columns perfectly; so would two views or two keys.
    policy = ViewPolicy(num_ops=4, op_probability=1, erase=0.5, magnitude=5, increasing=True)
    names = RAND_AUGMENT_INCREASING_OPS
    signed = {name for name in names if name.startswith(("Rotate", "Shear", "Translate", "Color"))}

    def numbers(view):
        ops = [
            (names.index(op.name), op.level, (op.name in signed) * (op.negate - 0.5))
            for op in view.ops
        ]
        return [view.flip, view.erase is not None, *np.ravel(view.crops), *np.ravel(ops)]

    # Which operations are applied shows in how many there are as their number grows by one.
    halves = [ViewPolicy(num_ops=number, increasing=True) for number in range(5)]
    applied = np.diff(
        [[len(view.ops) for view in draw_views(half, 5_000)] for half in halves], axis=0
    )
    rows = [
        numbers(view) + list(slots)
        for view, slots in zip(draw_views(policy, 5_000), applied.T, strict=True)
    ]
    matrix = np.array([one + two for one, two in pairwise(rows)], dtype=np.float64)
    # Per row: 58 decisions of a view, and the same 58 of the next key's view.
    correlation = np.abs(np.corrcoef(matrix.T) - np.eye(matrix.shape[1]))
    assert correlation.max() < 5.5 / np.sqrt(len(rows))


def test_an_erased_boxs_numbers_are_independent_of_the_rest():
    policy = ViewPolicy(erase=1, num_ops=4, op_probability=1, magnitude=5)
    drawn = draw_views(policy, 5_000)
    levels = [[op.level for op in view.ops] for view in drawn]
    which = [[RAND_AUGMENT_OPS.index(op.name) for op in view.ops] for view in drawn]
    rest = [[view.flip, *np.ravel(view.crops)] for view in drawn]
    rest = np.concatenate([rest, levels, which], axis=1, dtype=np.float64)
    erase = np.array([view.erase for view in drawn], dtype=np.float64)
    assert np.abs(correlations(erase, rest)).max() < 5.5 / np.sqrt(len(drawn))
    # Height and width depend on each other, through area and ratio; the corner is free.
    assert np.abs(correlations(erase[:, 2:], erase[:, :2])).max() < 5.5 / np.sqrt(len(drawn))
    assert abs(correlations(erase[:, 2:3], erase[:, 3:])).item() < 5.5 / np.sqrt(len(drawn))


def correlations(ones, others):
    """Pearson correlation of each column of the one with each of the other."""
    both = np.corrcoef(ones.T, others.T)
    return both[: ones.shape[1], ones.shape[1] :]
