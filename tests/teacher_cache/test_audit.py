import json

import numpy as np
import pytest
import torch
from small import build_teacher, cache_document, cache_recipe, fill_cache, to_toml

from teacher_cache.audit import _compare, audit
from teacher_cache.errors import CacheError
from teacher_cache.images import index_images
from teacher_cache.slab import read_slab
from teacher_cache.store import open_cache
from teacher_cache.topk import top_k


def test_a_cache_agrees_with_the_teacher_and_the_pixels_it_came_from(cli, filled, scans):
    done = cli("audit-cache", filled.root, "--data", scans / "train", "--records", 200, "--json")
    facts = json.loads(done.stdout)
    assert facts["passed"]
    assert facts["records"] == 200
    assert facts["pixels checked"] >= 4
    assert facts["top-1 agreement"] == 1
    assert facts["KL(live || cached), mean"] < 1e-6
    assert facts["pixels that differ"] == []


def test_a_replaced_image_fails_the_audit_and_is_named(cli, filled, own_scans):
    index = index_images(own_scans / "train")
    victim = own_scans / "train" / index.keys[32]  # row 32 is checked in view 0
    victim.write_bytes((own_scans / "train" / index.keys[70]).read_bytes())
    done = cli(
        "audit-cache", filled.root, "--data", own_scans / "train", "--records", 270, "--json",
        check=1,
    )  # fmt: skip
    assert f"view 0, {index.keys[32]}" in json.loads(done.stdout)["pixels that differ"]


def test_records_of_another_teacher_fail_the_audit_and_other_weights_are_refused(
    scans, filled, tmp_path
):
    recipe, index = cache_recipe(), index_images(scans / "train")
    other = build_teacher(cache_recipe(teacher__seed=1), index)
    with pytest.raises(CacheError, match="audit with that teacher"):
        audit(filled, index, other, records=8, seed=0)
    cache = fill_cache(tmp_path / "cache", scans / "train", recipe)
    object.__setattr__(other, "weights_sha256", cache.manifest.teacher_weights_sha256)
    result = audit(cache, index, other, records=64, seed=0)
    assert result.pixels_wrong == ()
    assert not result.passed
    assert result.kl.mean() > 1e-3


def test_the_figures_are_those_of_dense_arithmetic():
    logits_BC = torch.randn((50, 12), generator=torch.Generator().manual_seed(0)) * 3
    topk = top_k(logits_BC, k=4, temperatures=(1.0,))
    log_p_BC = torch.log_softmax(logits_BC.double(), 1)
    kl, outside, lost = _compare(
        log_p_BC,
        torch.from_numpy(topk.ids_BK.astype(np.int64)),
        torch.from_numpy(topk.logp_BK).double(),
        torch.from_numpy(topk.tail_BT).double(),
    )
    p_BC = log_p_BC.exp().numpy()
    for row in range(50):
        ids = topk.ids_BK[row].astype(int)
        rest = np.setdiff1d(np.arange(12), ids)
        assert outside[row] == pytest.approx(p_BC[row, rest].sum(), rel=1e-9)
        even = np.full(12, p_BC[row, rest].sum() / 8)
        even[ids] = p_BC[row, ids]
        dense = (p_BC[row] * np.log(p_BC[row] / even)).sum()
        assert lost["uniform"][row] == pytest.approx(dense, abs=1e-5)
        reverse = -np.log(p_BC[row, ids].sum())
        assert lost["renormalize, reversed"][row] == pytest.approx(reverse, rel=1e-9)
    assert kl.max() < 1e-6


def test_a_cache_without_a_complete_view_cannot_be_audited(own_cache, scans):
    for path in (own_cache / "ledger").glob("*/1.json"):
        path.unlink()
    recipe, index = cache_recipe(), index_images(scans / "train")
    with pytest.raises(CacheError, match="no complete view yet"):
        audit(open_cache(own_cache), index, build_teacher(recipe, index), records=8, seed=0)


def test_the_plan_predicts_what_the_cache_will_weigh(cli, filled, scans, tmp_path):
    recipe = tmp_path / "cache.toml"
    recipe.write_text(to_toml(cache_document()))
    facts = json.loads(cli("plan-cache", recipe, "--data", scans / "train", "--json").stdout)
    assert (facts["images"], facts["views"], facts["records"], facts["sample"]) == (90, 3, 270, 64)
    names = ("ids", "logp", "tail", "check")
    shards = [p for name in names for p in (filled.root / name / "c").rglob("*") if p.is_file()]
    actual = sum(path.stat().st_size for path in shards) / 270
    assert facts["bytes a record"] == pytest.approx(actual, rel=0.2)
    assert facts["teacher, hours"] <= facts["one process with decoding, hours"]
    slab = read_slab(filled, 0)
    size = sum(a.nbytes for a in (slab.ids_NK, slab.logp_NK, slab.tail_NT, slab.check))
    assert facts["MB of two slabs in memory"] == pytest.approx(2 * size / 1e6, abs=0.06)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
