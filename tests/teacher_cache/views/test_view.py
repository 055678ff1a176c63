"""Views: pure, and the same for ever."""

import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import REPOSITORY

from teacher_cache.views.policy import (
    RAND_AUGMENT_INCREASING_OPS,
    RAND_AUGMENT_OPS,
    ViewPolicy,
    fixed_point,
)
from teacher_cache.views.quantiles import quantiles
from teacher_cache.views.view import View, sample_view

PAPER = ViewPolicy()

seeds = st.integers(-(2**70), 2**70)
views = st.integers(0, 2**70)
# Any file name: text, and bytes that are no UTF-8.
keys = st.text(st.characters(exclude_categories=["Cs"])) | st.binary().map(os.fsdecode)
policies = st.builds(
    ViewPolicy,
    min_area=st.floats(1e-6, 1),
    flip=st.floats(0, 1),
    randaugment=st.booleans(),
    num_ops=st.integers(0, 4),
    op_probability=st.floats(0, 1),
    magnitude=st.floats(0, 10),
    magnitude_std=st.floats(0, 10),
    increasing=st.booleans(),
    erase=st.floats(0, 1),
)
examples = settings(deadline=None, derandomize=True, max_examples=200)


def draw_views(policy=PAPER, count=300):
    return [sample_view(policy, seed=7, key=f"n01/{row}.jpg", view=3) for row in range(count)]


@examples
@given(policies, seeds, keys, views)
def test_a_view_depends_on_its_arguments_alone(policy, seed, key, view):
    first = sample_view(policy, seed=seed, key=key, view=view)
    random.seed(seed)
    np.random.seed(1)  # noqa: NPY002 - shows that the global generator is not read
    torch.manual_seed(2)
    sample_view(policy, seed=seed + 1, key=key, view=view + 1)
    again = ViewPolicy.model_validate_json(policy.model_dump_json())
    assert sample_view(again, seed=seed, key=key, view=view) == first
    assert pickle.loads(pickle.dumps(first)) == first


def test_a_view_is_the_same_in_another_process_with_another_hash_seed_and_locale():
    program = (
        "import os; from teacher_cache.views.view import ViewPolicy, sample_view\n"
        "key = os.fsdecode(b'\\xc3\\xa9/\\xff.jpg')\n"
        "print([sample_view(ViewPolicy(), seed=5, key=key, view=v) for v in range(20)])"
    )
    key = os.fsdecode(b"\xc3\xa9/\xff.jpg")
    expected = [sample_view(PAPER, seed=5, key=key, view=view) for view in range(20)]
    for environment in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2", "LC_ALL": "C"}):
        printed = subprocess.run(
            [sys.executable, "-c", program],
            cwd=REPOSITORY,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert printed.strip() == repr(expected)


@examples
@given(st.tuples(seeds, keys, views), st.tuples(seeds, keys, views))
def test_different_arguments_give_different_views(one, other):
    def sampled(arguments):
        seed, key, view = arguments
        return sample_view(PAPER, seed=seed, key=key, view=view)

    same = (one[0], os.fsencode(one[1]), one[2]) == (other[0], os.fsencode(other[1]), other[2])
    assert (sampled(one) == sampled(other)) == same


def test_fields_that_only_differ_in_where_one_ends_give_different_views():
    arguments = [
        (seed, key, view)
        for seed in (0x1, 0x11, 0x111, -1)
        for key in ("", "1", "11", "1,1:1", ",", "1:1,", "a", "a,1:1,", "\0")
        for view in (0x1, 0x11, 0x111)
    ]
    sampled = {sample_view(PAPER, seed=s, key=k, view=v).noise_key for s, k, v in arguments}
    assert len(sampled) == len(arguments)


def test_file_names_that_are_no_utf8_have_views_of_their_own():
    names = [b"\xff.jpg", b"\xfe.jpg", b"?.jpg", b"\xef\xbf\xbd.jpg", b"\xc3\xbf.jpg"]
    sampled = {sample_view(PAPER, seed=0, key=os.fsdecode(name), view=0) for name in names}
    assert len(sampled) == len(names)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"seed": 0, "key": "a", "view": -1}, ValueError),
        ({"seed": 0.5, "key": "a", "view": 0}, TypeError),
        ({"seed": 0, "key": "a", "view": 1.5}, TypeError),
    ],
)
def test_a_view_number_below_zero_and_fractions_are_refused(arguments, error):
    with pytest.raises(error):
        sample_view(PAPER, **arguments)


@pytest.mark.parametrize(
    "field",
    [
        {"min_area": 0.0},
        {"min_area": 1.1},
        {"flip": -0.1},
        {"num_ops": 5},
        {"magnitude": float("nan")},
        {"magnitude_std": float("inf")},
        {"erase": 2},
        {"mixup": 0.2},
    ],
)
def test_a_policy_outside_its_ranges_is_refused(field):
    with pytest.raises(pydantic.ValidationError, match=next(iter(field))):
        ViewPolicy(**field)


def test_a_changed_copy_of_a_policy_is_not_served_the_old_numbers():
    sample_view(PAPER, seed=0, key="a", view=0)
    never = PAPER.model_copy(update={"flip": 0.0})
    assert not any(view.flip for view in draw_views(never, 50))


@examples
@given(policies, seeds, keys, views)
def test_every_field_of_a_view_is_in_its_range(policy, seed, key, view):
    sampled = sample_view(policy, seed=seed, key=key, view=view)
    ratios = set(quantiles().crop_ratio)
    assert len(sampled.crops) == 10
    for area, ratio, x, y in sampled.crops:
        assert fixed_point(policy).min_area <= area <= 2**32
        assert ratio in ratios
        assert 0 <= x < 2**32
        assert 0 <= y < 2**32
    assert len(sampled.ops) <= (policy.num_ops if policy.randaugment else 0)
    names = RAND_AUGMENT_INCREASING_OPS if policy.increasing else RAND_AUGMENT_OPS
    for op in sampled.ops:
        assert op.name in names
        assert 0 <= op.level <= 10 * 65536
    if sampled.erase is not None:
        assert all(0 <= value < 2**32 for value in sampled.erase)
    assert len(sampled.noise_key) == 16


@examples
@given(seeds, keys, views, st.integers(0, 4))
def test_probabilities_of_zero_and_one_are_never_and_always(seed, key, view, num_ops):
    never = ViewPolicy(flip=0, op_probability=0, erase=0, num_ops=num_ops)
    always = ViewPolicy(flip=1, op_probability=1, erase=1, num_ops=num_ops)
    off = sample_view(never, seed=seed, key=key, view=view)
    on = sample_view(always, seed=seed, key=key, view=view)
    assert (off.flip, off.ops, off.erase) == (False, (), None)
    assert (on.flip, len(on.ops)) == (True, num_ops)
    assert off.crops == on.crops
    assert off.noise_key == on.noise_key


def test_a_fifth_decision_more_or_less_moves_no_other_one():
    # Words are read by position: another number of operations changes the operations alone.
    for two, four in zip(
        draw_views(ViewPolicy(num_ops=2), 300), draw_views(ViewPolicy(num_ops=4), 300), strict=True
    ):
        assert four.ops[: len(two.ops)] == two.ops
        assert (four.crops, four.flip, four.erase) == (two.crops, two.flip, two.erase)


def test_a_view_is_a_frozen_value():
    view = sample_view(PAPER, seed=0, key="a", view=0)
    assert isinstance(view, View)
    with pytest.raises(AttributeError):
        view.flip = True
    with pytest.raises(pydantic.ValidationError):
        PAPER.flip = 1.0
    assert hash(view) == hash(sample_view(PAPER, seed=0, key="a", view=0))
