"""Mean and deviation of all classes, where a cache keeps them: true ones pass, false do not."""

import json

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from small import build_teacher, cache_recipe, fill_cache

from teacher_cache.cache.blocks import Block, withdraw_block, write_block
from teacher_cache.cache.cache import absent_rows, open_cache
from teacher_cache.cache.slab import read_block, read_slab
from teacher_cache.errors import CacheError
from teacher_cache.format.arrays import quiet_zarr
from teacher_cache.format.encodings import restored_logp, stored_logp
from teacher_cache.images.index import index_images
from teacher_cache.record import Encoding, TopK
from teacher_cache.storage.disk import Disk
from teacher_cache.storage.ledger import BlockId
from teacher_cache.teacher.answers import top_k
from teacher_cache.verification.audit import audit
from teacher_cache.verification.invariants import Rules
from teacher_cache.verification.moments import fault_in_moments
from teacher_cache.verification.repair import repair
from teacher_cache.verification.verify import verify

SHAPES = st.sampled_from(["normal", "one far above", "all alike", "two groups"])


def logits_of(shape, rows, classes, scale, seed):
    normal = torch.randn((rows, classes), generator=torch.Generator().manual_seed(seed))
    if shape == "one far above":
        normal[:, 0] += scale
        return normal
    if shape == "all alike":
        return torch.full((rows, classes), scale)
    found = normal * scale if shape == "normal" else torch.where(normal > 0, scale, -scale)
    return found.clamp(-3e38, 3e38)


def fault(topk, encoding=Encoding.DEFAULT, absent=(), classes=100):
    rows = np.zeros(len(topk.ids_BK), bool)
    rows[list(absent)] = True
    logp = stored_logp(topk.logp_BK, encoding)
    logp = restored_logp(logp) if encoding is Encoding.COMPACT else logp
    return fault_in_moments(logp, topk.moments_B2, rows, Rules(classes, (1.0,), encoding))


@settings(max_examples=300, deadline=None)
@given(
    SHAPES,
    st.one_of(st.integers(1, 40), st.sampled_from([1000, 30_000])),
    st.floats(0, 1),
    st.floats(-6, 38).map(lambda power: 10.0**power),
    st.sampled_from(Encoding),
    st.integers(0, 2**32),
)
def test_no_true_mean_and_deviation_is_refused(shape, classes, kept, scale, encoding, seed):
    k = max(1, min(classes, round(kept * min(classes, 60))))
    logits = logits_of(shape, 8, classes, scale, seed)
    topk = top_k(logits, k=k, temperatures=(1.0,), moments=True)
    assert fault(topk, encoding, classes=classes) is None


def test_they_are_those_of_all_log_probabilities():
    logits = 3 * torch.randn((50, 100), generator=torch.Generator().manual_seed(0))
    logp = torch.log_softmax(logits.double(), 1)
    found = top_k(logits, k=5, temperatures=(1.0,), moments=True).moments_B2
    expected = np.stack([logp.mean(1).numpy(), logp.numpy().std(1)], 1)
    np.testing.assert_allclose(found, expected, rtol=2**-11)
    assert top_k(logits, k=5, temperatures=(1.0,)).moments_B2 is None


def test_false_ones_are_refused_with_their_row():
    logits = 3 * torch.randn((64, 100), generator=torch.Generator().manual_seed(0))

    def changed(row, mean=None, deviation=None):
        topk = top_k(logits, k=5, temperatures=(1.0,), moments=True)
        if mean is not None:
            topk.moments_B2[row, 0] = mean
        if deviation is not None:
            topk.moments_B2[row, 1] = deviation
        found = fault(topk)
        return found and (found.row, found.what)

    assert changed(7, mean=-1.0)[0] == 7  # above -log 100
    assert "kept classes rule out" in changed(8, deviation=0.1)[1]
    assert changed(9, deviation=-3.0)[0] == 9
    assert changed(9, deviation=np.inf) is None or changed(9, deviation=np.inf)[0] == 9
    assert "fill values belong" in changed(3, mean=np.nan)[1]
    swapped = top_k(logits, k=5, temperatures=(1.0,), moments=True)
    swapped.moments_B2[:] = swapped.moments_B2[:, ::-1].copy()
    assert fault(swapped).row == 0
    absent = top_k(logits, k=5, temperatures=(1.0,), moments=True)
    assert fault(absent, absent=[4]).row == 4
    absent.moments_B2[4] = np.nan
    assert fault(absent, absent=[4]) is None


@pytest.fixture(params=list(Encoding))
def with_moments(scans, tmp_path, request):
    recipe = cache_recipe(topk__extras=["moments"], storage__encoding=request.param)
    return recipe, fill_cache(tmp_path / "cache", scans / "train", recipe)


def test_a_cache_keeps_them_and_every_reader_knows(with_moments, scans):
    recipe, cache = with_moments
    index = index_images(scans / "train")
    assert open_cache(cache.place).layout.moments
    whole = read_slab(cache, 1)
    assert whole.moments_N2.shape == (90, 2)
    kept = np.array([3, 40, 41, 89])
    some = read_slab(cache, 1, kept)
    np.testing.assert_array_equal(some.moments_N2, whole.moments_N2[kept])
    assert verify(cache).is_sound
    assert audit(cache, index, build_teacher(recipe, index), recipe, records=60, seed=1).passed
    with quiet_zarr():
        array = zarr.open_array(cache.place.root / "moments", mode="r")
        np.testing.assert_array_equal(array[1], whole.moments_N2)
    assert absent_rows(cache) == frozenset()


def test_a_block_with_others_is_found_by_verify_or_by_the_teacher(with_moments, scans):
    recipe, cache = with_moments
    index = index_images(scans / "train")
    block = BlockId(1, 1)
    slab = read_block(cache, block)

    def rewritten(moments):
        withdraw_block(cache, block, "test")
        topk = TopK(slab.ids_NK, slab.logp_NK, slab.tail_NT, moments)
        if recipe.storage.encoding is Encoding.COMPACT:
            topk = TopK(slab.ids_NK, slab.logp_NK.astype(np.float16), slab.tail_NT, moments)
        write_block(cache, Block(block, topk, slab.check), {})

    rewritten(slab.moments_N2[:, ::-1].copy())
    (damage,) = verify(cache).damage
    assert "of all classes, which its kept classes rule out" in damage.what
    repair(cache, verify(cache))
    rewritten(slab.moments_N2 + np.array([-0.5, 0.5], np.float16))  # possible, and not true
    assert not [found for found in verify(cache).damage]
    found = audit(cache, index, build_teacher(recipe, index), recipe, records=90, seed=1)
    assert not found.passed
    assert found.foreign


def test_caches_with_and_without_them_are_two(scans, tmp_path, filled):
    plain, more = cache_recipe(), cache_recipe(topk__extras=["moments"])
    assert plain.digest() == cache_recipe(topk__extras=[]).digest() != more.digest()
    assert "extras" not in json.dumps(plain.data_settings())
    with pytest.raises(CacheError, match="extras"):
        fill_cache(Disk(filled.place.root), scans / "train", more)
