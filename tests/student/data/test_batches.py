"""What a rank shows of each epoch, and which records it keeps for that."""

import itertools

import numpy as np
import pytest
import torch
from small import student_document

from student.data.batches import batches
from student.data.run_plan import plan_run
from student.data.slabs import prefetched_slabs
from student.data.training_data import replayed_data
from student.ranks import Ranks
from student.recipe import StudentRecipe
from teacher_cache.cache.cache import open_cache
from teacher_cache.errors import MissingRecords
from teacher_cache.images.index import rebase
from teacher_cache.loading.loader import LoaderSettings
from teacher_cache.recipes.document import parse_recipe
from teacher_cache.storage.disk import Disk


@pytest.fixture
def planned(scans, filled):
    """Data and plan of rank `number` of `count`."""

    def plan(number=0, count=1, cache=filled, **changes):
        recipe = parse_recipe(student_document(**changes), StudentRecipe, source="test")
        data = replayed_data(recipe, rebase(cache.index, scans / "train"), cache)
        return data, plan_run(recipe, data, Ranks(number, count))

    return plan


def steps_of(data, plan, start_step=0):
    with batches(data, plan, start_step=start_step, settings=LoaderSettings(0)) as stream:
        return [step for step in stream if step]


REUSING = {"schedule__epochs": 4, "views__reuse": True}
"""Four epochs of three views: the first view is shown twice, each time in another order."""


@pytest.mark.parametrize("count", [2, 4])
def test_ranks_together_show_the_images_and_targets_of_one_process(planned, count):
    changes = {"optimizer__micro_batch": 4, **REUSING}
    alone = steps_of(*planned(**changes))
    shares = [steps_of(*planned(number, count, **changes)) for number in range(count)]
    assert len(alone) == 20
    for step, *parts in zip(alone, *shares, strict=True):
        for one, other in zip(step, itertools.chain(*parts), strict=True):
            assert one.rows.tolist() == other.rows.tolist()
            assert torch.equal(one.pixels_BHWC, other.pixels_BHWC)
            assert torch.equal(one.labels_B, other.labels_B)
            for name in ("ids_BK", "logp_BK", "tail_B"):
                assert torch.equal(getattr(one.target, name), getattr(other.target, name))


def test_a_rank_goes_on_in_the_midst_of_an_epoch(planned):
    data, plan = planned(1, 2, **REUSING)
    whole = steps_of(data, plan)
    for start in (7, 10, 19, 20):
        rest = steps_of(data, plan, start)
        assert [s[0].rows.tolist() for s in rest] == [s[0].rows.tolist() for s in whole[start:]]
        for (one,), (other,) in zip(rest, whole[start:], strict=True):
            assert torch.equal(one.target.logp_BK, other.target.logp_BK)


def test_a_rank_keeps_the_records_of_its_own_rows_alone(planned):
    data, plan = planned(2, 4, **REUSING)
    for epoch, slab in enumerate(prefetched_slabs(data, plan, range(4))):
        own = plan.own_rows(data.rows, epoch)
        assert own.shape == (5, 4)
        assert slab.view == epoch % 3
        assert slab.kept_M.tolist() == sorted(own.reshape(-1).tolist())
        assert len(slab.ids_NK) == len(slab.logp_NK) == len(slab.tail_NT) == 20
        assert len(slab.check) == 3  # of the whole view


def test_one_process_keeps_all_records_as_they_are_decoded(planned):
    (slab,) = prefetched_slabs(*planned(), range(2, 3))
    assert slab.kept_M is None
    assert len(slab.ids_NK) == 90


def test_an_unfilled_row_of_another_rank_is_an_error_of_every_rank(planned, own_cache):
    (own_cache / "ledger" / "0" / "1.json").unlink()
    for number in range(2):
        data, plan = planned(number, 2, cache=open_cache(Disk(own_cache)))
        with pytest.raises(MissingRecords, match="view 0, rows 32-63: not filled yet"):
            next(prefetched_slabs(data, plan, range(1)))


def test_the_own_rows_of_all_ranks_are_the_order_of_the_epoch(planned):
    data, alone = planned()
    whole = alone.own_rows(data.rows, 1)
    assert whole.shape == (5, 16)
    own = [planned(number, 4)[1].own_rows(data.rows, 1) for number in range(4)]
    np.testing.assert_array_equal(np.concatenate(own, axis=1), whole)
    assert len(set(whole.reshape(-1).tolist())) == 80
