import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from student.data.shuffle import ascending, epoch_order, step_seed


@given(seed=st.integers(0, 2**64), epoch=st.integers(0, 1000), count=st.integers(0, 300))
def test_an_order_is_a_permutation_that_its_arguments_alone_decide(seed, epoch, count):
    order = epoch_order(count, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(count))
    assert order.tolist() == epoch_order(count, seed=seed, epoch=epoch).tolist()


def test_orders_differ_between_epochs_and_seeds():
    orders = {tuple(epoch_order(100, seed=s, epoch=e).tolist()) for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_every_row_comes_first_equally_often():
    first = [epoch_order(8, seed=0, epoch=epoch)[0] for epoch in range(4000)]
    assert chisquare(np.bincount(first, minlength=8)).pvalue > 1e-3


def test_the_order_is_fixed_for_ever():
    assert epoch_order(10, seed=0, epoch=0).tolist() == [6, 8, 0, 1, 4, 9, 2, 3, 5, 7]
    assert epoch_order(6, seed=7, epoch=3).tolist() == [1, 0, 4, 2, 3, 5]
    assert step_seed(seed=1, step=2, rank=3) == 4380208179237407043


@pytest.mark.parametrize("at", [0, 65_535, 65_536, 131_071])
def test_equal_words_come_by_position_wherever_in_the_order_they_meet(at):
    for seed in range(8):  # argsort may happen to keep the order of some
        words = np.random.default_rng(seed).permutation(140_000).astype("<u8")
        order = np.argsort(words)
        words[order[at + 1]] = words[order[at]]
        expected = np.argsort(words, kind="stable")
        np.testing.assert_array_equal(ascending(words), expected)


def test_step_seeds_fit_torch_and_differ_by_step_seed_and_rank():
    seeds = {
        step_seed(seed=s, step=t, rank=r) for s in range(3) for t in range(3) for r in range(3)
    }
    assert len(seeds) == 27
    assert all(0 <= seed < 2**63 for seed in seeds)
