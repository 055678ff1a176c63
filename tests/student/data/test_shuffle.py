import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from student.data.shuffle import epoch_order, step_seed


@given(seed=st.integers(0, 2**64), epoch=st.integers(0, 1000), count=st.integers(0, 300))
def test_an_order_is_a_permutation_that_its_arguments_alone_decide(seed, epoch, count):
    rows = np.arange(count) * 3
    order = epoch_order(rows, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == rows.tolist()
    assert order.tolist() == epoch_order(rows, seed=seed, epoch=epoch).tolist()


def test_orders_differ_between_epochs_and_seeds():
    rows = np.arange(100)
    orders = {
        tuple(epoch_order(rows, seed=s, epoch=e).tolist()) for s in range(3) for e in range(3)
    }
    assert len(orders) == 9


def test_every_row_comes_first_equally_often():
    rows = np.arange(8)
    first = [epoch_order(rows, seed=0, epoch=epoch)[0] for epoch in range(4000)]
    assert chisquare(np.bincount(first, minlength=8)).pvalue > 1e-3


def test_the_order_is_fixed_for_ever():
    assert epoch_order(np.arange(10), seed=0, epoch=0).tolist() == [6, 8, 0, 1, 4, 9, 2, 3, 5, 7]
    assert epoch_order(np.arange(6), seed=7, epoch=3).tolist() == [1, 0, 4, 2, 3, 5]
    assert step_seed(seed=1, step=2, rank=3) == 4380208179237407043


def test_step_seeds_fit_torch_and_differ_by_step_seed_and_rank():
    seeds = {
        step_seed(seed=s, step=t, rank=r) for s in range(3) for t in range(3) for r in range(3)
    }
    assert len(seeds) == 27
    assert all(0 <= seed < 2**63 for seed in seeds)
