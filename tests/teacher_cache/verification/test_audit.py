import json
import shutil

import numpy as np
import pytest
import torch
from small import build_teacher, cache_document, cache_recipe, fill_cache, to_toml

from teacher_cache.cache.blocks import (
    Block,
    committed_blocks,
    missing_blocks,
    withdraw_block,
    write_block,
)
from teacher_cache.cache.cache import append_views, open_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.errors import CacheError
from teacher_cache.filling.fill import fill
from teacher_cache.filling.opening import open_or_create
from teacher_cache.images.index import index_images, read_class_map, rebase
from teacher_cache.record import TopK
from teacher_cache.storage.disk import Disk
from teacher_cache.storage.ledger import BlockId
from teacher_cache.teacher.answers import top_k
from teacher_cache.verification.audit import audit, most_flips
from teacher_cache.verification.divergence import kl_of_records


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "cache.toml"
    path.write_text(to_toml(cache_document()))
    return path


def audited(cache, scans, *, records, seed=0, **changes):
    recipe = cache_recipe(**changes)
    index = rebase(cache.index, scans / "train")
    teacher = build_teacher(recipe, index)
    return audit(cache, index, teacher, recipe, records=records, seed=seed)


def test_a_cache_agrees_with_the_teacher_and_the_pixels_it_came_from(
    cli, filled, scans, recipe_file
):
    audit_it = ["audit-cache", filled.place.root, recipe_file, "--data", scans / "train"]
    facts = json.loads(cli(*audit_it, "--records", 200, "--json").stdout)
    assert facts["passed"]
    assert 180 <= facts["records"] <= 207
    assert facts["blocks"] == "9 of 9"
    assert facts["pixels checked"] >= 9
    assert facts["top-1 agreement"] == 1
    assert set(facts["KL(live || cached), mean"]) == {"tau 1", "tau 2"}
    assert max(facts["KL(live || cached), mean"].values()) < 1e-6
    assert facts["pixels that differ"] == facts["images that differ"] == []
    for tau in (1, 2):
        for tail in ("uniform", "bucket"):
            assert 0 <= facts[f"KL(dense || {tail}), tau {tau}"]["50%"] < 1e-2
            for student in ("fresh", "trained-like"):
                cosine = facts[f"gradient cosine, tau {tau}, {tail}, {student}"]
                assert -1 <= cosine["least"] <= cosine["5%"] <= cosine["mean"] <= 1


def test_each_audit_takes_another_sample_and_a_seed_repeats_one(cli, filled, scans, recipe_file):
    audit_it = ["audit-cache", filled.place.root, recipe_file, "--data", scans / "train", "--json"]
    first, second = (json.loads(cli(*audit_it, "--records", 20).stdout) for _ in range(2))
    assert first["seed"] != second["seed"]
    again = cli(*audit_it, "--records", 20, "--seed", first["seed"]).stdout
    assert json.loads(again) == first


def test_a_replaced_image_fails_the_audit_and_is_named(cli, filled, own_scans, recipe_file):
    index = index_images(own_scans / "train")
    victim = own_scans / "train" / index.keys[32]  # row 32 is checked in view 0
    victim.write_bytes((own_scans / "train" / index.keys[70]).read_bytes())
    done = cli(
        "audit-cache", filled.place.root, recipe_file, "--data", own_scans / "train",
        "--records", 300, "--json", check=1,
    )  # fmt: skip
    facts = json.loads(done.stdout)
    assert facts["images that differ"] == [index.keys[32]]
    assert f"view 0, {index.keys[32]}" in facts["pixels that differ"]


def test_the_teacher_is_the_users_and_another_is_refused(cli, filled, scans, recipe_file):
    audit_it = ["audit-cache", filled.place.root, recipe_file, "--data", scans / "train"]
    done = cli(*audit_it, "--set", "teacher.seed=1", check=1)
    assert "teacher.seed: 0 in the cache, 1 asked for" in done.stderr
    assert "teacher weights" in done.stderr
    done = cli(*audit_it, "--set", "topk.k=1", check=1)
    assert "topk.k: 2 in the cache, 1 asked for" in done.stderr


def test_records_of_another_teacher_fail_the_audit(scans, filled):
    result = audited(filled, scans, records=64, teacher__seed=1)
    assert result.pixels_wrong == result.images_wrong == ()
    assert not result.passed
    assert result.kl_NT.mean() > 1e-3


def test_one_foreign_block_of_many_is_found_and_named(scans, tmp_path):
    recipe = cache_recipe(views__count=11)  # 33 blocks
    cache = fill_cache(tmp_path / "cache", scans / "train", recipe)
    other = fill_cache(
        tmp_path / "other", scans / "train", cache_recipe(views__count=11, teacher__seed=1)
    )
    block = BlockId(7, 1)
    slab, rows = read_slab(other, 7), cache.rows(1)
    part = slice(rows.start, rows.stop)
    check = read_slab(cache, 7).check[1:2]
    withdraw_block(cache, block, "test")
    topk = TopK(slab.ids_NK[part], slab.logp_NK[part], slab.tail_NT[part])
    write_block(cache, Block(block, topk, check), {"host": "test"})
    for seed in range(5):
        result = audited(cache, scans, records=132, seed=seed, views__count=11)
        assert result.foreign == (f"cache {cache.place.root}, view 7, rows 32-63",)
        assert not result.passed


def test_exchanged_tails_fail_the_audit_at_their_temperature(scans, tmp_path):
    cache = fill_cache(tmp_path / "cache", scans / "train", cache_recipe())
    slab = read_slab(cache, 1)
    for shard in range(3):
        block, rows = BlockId(1, shard), cache.rows(shard)
        part = slice(rows.start, rows.stop)
        withdraw_block(cache, block, "test")
        topk = TopK(slab.ids_NK[part], slab.logp_NK[part], slab.tail_NT[part][:, ::-1].copy())
        write_block(cache, Block(block, topk, slab.check[shard : shard + 1]), {})
    assert not audited(cache, scans, records=270).passed


def test_views_that_are_incomplete_or_all_absent_do_not_stop_an_audit(own_scans, tmp_path):
    train = own_scans / "train"
    for key in index_images(train).keys[:32]:
        (train / key).write_bytes(b"no image")
    recipe = cache_recipe(images__skip_unreadable=True, images__max_unreadable=0.5)
    cache = fill_cache(tmp_path / "cache", train, recipe)
    withdraw_block(cache, BlockId(2, 2), "test")
    cache = append_views(cache, 4)
    result = audited(cache, own_scans, records=300)
    assert result.passed
    assert len(result.findings) == 5  # 2 of 3 shards have images, in 3 views, less the one gone
    assert result.blocks == 12


def test_a_cache_without_records_cannot_be_audited(own_cache, scans):
    shutil.rmtree(own_cache / "ledger" / "0")
    shutil.rmtree(own_cache / "ledger" / "1")
    shutil.rmtree(own_cache / "ledger" / "2")
    cache = open_cache(Disk(own_cache))
    assert committed_blocks(Disk(own_cache)) == set()
    assert len(missing_blocks(cache)) == 9
    with pytest.raises(CacheError, match="has no block yet: nothing to audit"):
        audited(cache, scans, records=8)


def test_so_many_best_classes_may_flip_by_chance_and_no_more():
    counts = [most_flips(records) for records in (1, 4, 32, 1024)]
    assert counts == sorted(counts)
    assert counts[0] == 1  # one record alone proves nothing
    assert 4 <= counts[2] <= 7
    assert 1024 * 0.01 < counts[3] < 1024 * 0.05


def test_the_figures_are_those_of_dense_arithmetic():
    logits_BC = torch.randn((50, 12), generator=torch.Generator().manual_seed(0)) * 3
    topk = top_k(logits_BC, k=4, temperatures=(1.0, 2.0))
    log_p_BC = torch.log_softmax(logits_BC.double(), 1)
    ids_BK = torch.from_numpy(topk.ids_BK.astype(np.int64))
    for column, tau in enumerate((1.0, 2.0)):
        logp_BK = torch.from_numpy(topk.logp_BK).double()
        tail_B1 = torch.from_numpy(topk.tail_BT[:, column : column + 1]).double()
        assert kl_of_records(log_p_BC, ids_BK, logp_BK, tail_B1, tau).max() < 1e-5
        wrong_B1 = tail_B1 + 1
        assert kl_of_records(log_p_BC, ids_BK, logp_BK, wrong_B1, tau).mean() > 1e-2


def test_the_plan_predicts_what_the_cache_will_weigh(cli, filled, scans, tmp_path):
    recipe = tmp_path / "cache.toml"
    recipe.write_text(to_toml(cache_document()))
    command = ("plan-cache", recipe, "--data", scans / "train", "--ranks", 3, "--json")
    facts = json.loads(cli(*command).stdout)
    assert (facts["images"], facts["views"], facts["records"], facts["sample"]) == (90, 3, 270, 64)
    names = ("ids", "logp", "tail", "check")
    actual = sum(p.stat().st_size for n in names for p in (filled.place.root / n).glob("c.*")) / 270
    assert facts["bytes a record"] == pytest.approx(actual, rel=0.2)
    for tau in (1, 2):
        for student in ("fresh", "trained-like"):
            assert 0.9 < facts[f"gradient cosine, tau {tau}, {student}"]["mean"] <= 1
    assert facts["teacher, hours"] <= facts["one process with decoding, hours"]
    slab = read_slab(filled, 0)
    size = sum(a.nbytes for a in (slab.ids_NK, slab.logp_NK, slab.tail_NT, slab.check))
    assert facts["MB of two slabs in memory"] == pytest.approx(2 * size / 1e6, rel=0.01)
    assert facts["ranks of a host"] == 3
    of_a_rank, of_a_host = (
        facts[f"MB of records in a {owner}'s memory, at most"] for owner in ("rank", "host")
    )
    assert of_a_host == pytest.approx(3 * of_a_rank, rel=0.01)
    assert of_a_host > facts["MB of two slabs in memory"] > of_a_rank / 3
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_classes_that_the_recipe_numbers_otherwise_fail_the_audit(
    cli, filled, scans, recipe_file, tmp_path
):
    """Every record may be the teacher's, and every label another class's."""
    class_map = tmp_path / "map.json"
    class_map.write_text(json.dumps({"digit-0": 1, "digit-1": 0, "digit-2": 2}))
    command = ("audit-cache", filled.place.root, recipe_file, "--data", scans / "train")
    error = cli(*command, "--set", f"images.class_map={class_map}", check=1).stderr
    assert "digit-0 is class 0 in the cache and class 1 by the recipe" in error
    root = tmp_path / "exchanged"
    index = index_images(scans / "train", class_ids=read_class_map(class_map))
    recipe = cache_recipe()
    teacher = build_teacher(recipe, index)
    for _ in fill(open_or_create(Disk(root), recipe, index, teacher), index, teacher, recipe):
        pass
    command = ("audit-cache", root, recipe_file, "--data", scans / "train")
    assert (
        "digit-0 is class 1 in the cache and class 0 by the recipe" in cli(*command, check=1).stderr
    )
