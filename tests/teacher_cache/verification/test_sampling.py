"""The teacher asked before the first block: is it one of these classes, is it still the same."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from small import (
    TEACHER,
    build_teacher,
    cache_document,
    cache_recipe,
    fill_cache,
    rewrite_manifest,
    to_toml,
)

from teacher_cache.cache.blocks import missing_blocks
from teacher_cache.cache.cache import open_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.cache.teacher_sample import TeacherSample, read_sample
from teacher_cache.errors import DamagedRecords, ReplayRefused, UserError
from teacher_cache.filling.opening import library_versions, open_or_create
from teacher_cache.images.index import index_images, rebase
from teacher_cache.record import Tail
from teacher_cache.storage.disk import Disk
from teacher_cache.storage.ledger import SAMPLE_KEY, seal
from teacher_cache.teacher.member import TeacherError
from teacher_cache.verification.fidelity import Student, expected
from teacher_cache.verification.sampling import answers_of, choose_rows, poor_limit


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    count=st.integers(1, 200),
    seed=st.integers(0, 2**63),
)
def test_every_class_is_sampled_as_often_as_every_other_as_far_as_it_goes(counts, count, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    rows = choose_rows(labels, count=count, seed=seed)
    assert len(set(rows.tolist())) == len(rows) == min(count, len(labels))
    assert sorted(rows.tolist()) == rows.tolist()
    found = np.bincount(labels[rows], minlength=len(counts))
    for c, have in enumerate(counts):
        if found[c] < have:  # not all of it was taken, so no other class gave two more
            assert found.max() <= found[c] + 1


def test_the_sample_is_fixed_for_ever():
    labels = np.repeat(np.arange(4), 25)
    assert (
        choose_rows(labels, count=8, seed=0).tolist()
        == choose_rows(labels, count=8, seed=0).tolist()
    )
    chosen = [choose_rows(labels, count=8, seed=seed).tolist() for seed in (0, 1)]
    assert chosen[0] != chosen[1]


def test_the_sample_is_kept_and_agrees_with_the_records_of_its_view(filled):
    sample, slab = read_sample(filled), read_slab(filled, 0)
    assert sample.rows.tolist() == list(range(90))  # fewer than 512 images: all of them
    np.testing.assert_array_equal(sample.ids_NK, slab.ids_NK)
    np.testing.assert_array_equal(sample.logp_NK, slab.logp_NK)
    np.testing.assert_array_equal(sample.tail_NT, slab.tail_NT)
    assert sample.labels.tolist() == filled.index.labels.tolist()
    kept = (sample.ids_NK == sample.labels[:, None]).argmax(1)
    is_kept = (sample.ids_NK == sample.labels[:, None]).any(1)
    stated = np.exp(sample.logp_NK[np.arange(90), kept].astype(np.float64))[is_kept]
    assert sample.probability_N[is_kept] == pytest.approx(stated, rel=2e-3)
    document = json.loads(json.dumps(sample.to_document()))
    again = TeacherSample.from_document(document, filled.layout)
    assert again.to_document() == document


def test_what_training_on_the_records_is_to_training_on_whole_answers_is_kept_with_the_sample(
    scans, tmp_path
):
    recipe = cache_recipe(topk__k=1)
    cache = fill_cache(tmp_path / "cache", scans / "train", recipe)
    index = rebase(cache.index, scans / "train")
    teacher = build_teacher(recipe, index)
    rows = np.arange(len(index))
    logits_BC, another_BC = (
        torch.cat([each[0] for _, each in answers_of(index, teacher, recipe, rows, (view,))])
        for view in (0, 1)
    )
    sample = read_sample(cache)
    assert len(sample.measures) == 2 * 2 * 2 * 3  # temperatures, tails, students, statistics
    for tau in (1.0, 2.0):
        q = (logits_BC.double() / tau).softmax(1).numpy()
        s = (another_BC.double() / tau).softmax(1).numpy()
        even = np.repeat((1 - q.max(1, keepdims=True)) / 2, 3, axis=1)
        even[np.arange(90), q.argmax(1)] = q.max(1)
        for student, given_s in ((Student.FRESH, np.full_like(s, 1 / 3)), (Student.TRAINED, s)):
            one, other = given_s - even, given_s - q
            norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
            cosines = (one * other).sum(1) / norms
            found = expected(sample.measures, tau, Tail.UNIFORM)[student]
            # records are float16: probabilities are off by 2^-12 of themselves, and the random
            # teacher's gradients are that small
            assert found.mean == pytest.approx(cosines.mean(), abs=0.02)
            assert found.least <= found.low <= found.mean <= 1


def test_a_sample_of_an_earlier_version_is_read_and_was_not_measured(own_cache):
    cache = open_cache(Disk(own_cache))
    sample = replace(read_sample(cache), measures={})
    (own_cache / SAMPLE_KEY).write_bytes(seal("sample", cache.owner, sample.to_document()))
    found = read_sample(cache)
    assert found.rows.tolist() == sample.rows.tolist()
    assert expected(found.measures, 1.0, Tail.UNIFORM) is None


def test_all_classes_kept_have_a_tail_of_nothing(scans, tmp_path):
    cache = fill_cache(tmp_path / "cache", scans / "train", cache_recipe(topk__k=3))
    assert np.isneginf(read_sample(cache).tail_NT).all()


def test_inspection_says_what_the_teacher_knows(cli, filled):
    facts = json.loads(cli("inspect-cache", filled.place.root, "--json").stdout)
    sample = read_sample(filled)
    assert facts["teacher top-1 of a sample"] == round(sample.top1, 4)
    assert facts["images of the sample"] == 90


@pytest.mark.parametrize(
    "change",
    [
        {"rows": []},
        {"rows": [0, 0]},
        {"labels": [1]},
        {"ids": [[0, 99]] * 90},
        {"logp": [[0.5, -1]] * 90},
        {"logp": [["x", "y"]] * 90},
        {"tail": [[1e9, 0]] * 90},
        {"probability": [2.0] * 90},
        {"measures": 3},
        {"tail": 7},
    ],
)
def test_a_sample_that_makes_no_sense_is_damage_and_not_a_crash(own_cache, change):
    cache = open_cache(Disk(own_cache))
    document = {**read_sample(cache).to_document(), **change}
    (own_cache / "ledger" / "sample.json").write_bytes(seal("sample", cache.owner, document))
    with pytest.raises(DamagedRecords, match=r"ledger/sample\.json is damaged"):
        read_sample(cache)


def test_the_limit_is_little_above_chance():
    assert poor_limit(2) == pytest.approx(0.55)
    assert poor_limit(10) == pytest.approx(0.19)
    assert poor_limit(1000) == pytest.approx(0.005)


@pytest.fixture(scope="module")
def trained(scans):
    """A small network that tells the three digits apart, on 32 px."""
    from torch.nn.functional import cross_entropy

    from teacher_cache.loading.queue import render_here
    from teacher_cache.loading.renderers import Request, ViewRenderer
    from teacher_cache.teacher.normalize import Normalization

    torch.manual_seed(0)
    network = timm.create_model(TEACHER, num_classes=3)
    index, recipe = index_images(scans / "train"), cache_recipe()
    normalization = Normalization.of(network, torch.device("cpu"))
    images = render_here(
        ViewRenderer.of(index, recipe.views), Request(np.arange(90), tuple(range(4)))
    )
    inputs = normalization.images(images.pixels_GBHWC.flatten(0, 1))
    labels = torch.from_numpy(np.tile(index.labels, 4))
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        cross_entropy(network(inputs), labels).backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(autouse=True)
def _checkpoint(request, tmp_path):
    if "trained" in request.fixturenames:
        state = request.getfixturevalue("trained").state_dict()
        save_file(state, tmp_path / "trained.safetensors")


def of_checkpoint(tmp_path, name="trained", **changes):
    path = str(tmp_path / f"{name}.safetensors")
    return cache_recipe(teacher__pretrained=False, teacher__checkpoint=path, **changes)


def opened(root, data, recipe, **options):
    index = index_images(data, class_order=recipe.images.class_order)
    return open_or_create(Disk(root), recipe, index, build_teacher(recipe, index), **options)


def test_a_trained_teacher_that_knows_the_labels_is_taken(trained, scans, tmp_path):
    cache = opened(tmp_path / "cache", scans / "train", of_checkpoint(tmp_path))
    assert read_sample(cache).top1 > 0.8


def test_a_trained_teacher_of_other_classes_is_refused_before_anything_is_made(
    trained, scans, tmp_path
):
    state = dict(trained.state_dict())
    order = [1, 2, 0]
    for name in ("fc.weight", "fc.bias"):
        state[name] = state[name][order].contiguous()
    save_file(state, tmp_path / "permuted.safetensors")
    words = r"names the label of .*expected 40\.0% or more .*under another number: the class order"
    with pytest.raises(TeacherError, match=words):
        opened(tmp_path / "cache", scans / "train", of_checkpoint(tmp_path, "permuted"))
    assert not (tmp_path / "cache").exists()
    recipe = of_checkpoint(tmp_path, "permuted", teacher__allow_poor=True)
    assert read_sample(opened(tmp_path / "cache", scans / "train", recipe)).top1 < 0.4


def test_an_untrained_head_and_the_other_order_of_classes_are_named_as_the_cause(
    trained, scans, tmp_path
):
    state = dict(trained.state_dict())
    state["fc.weight"] = state["fc.weight"] * 1e-4
    state["fc.bias"] = torch.tensor([0.0, 0.0, 1e-3])
    state["fc.weight"][2] *= 0
    save_file(state, tmp_path / "blank.safetensors")
    with pytest.raises(TeacherError, match="nearly uniform: its head was never trained"):
        opened(tmp_path / "cache", scans / "train", of_checkpoint(tmp_path, "blank"))
    for name, scan in (("2", "digit-0"), ("3", "digit-1"), ("10", "digit-2")):
        (tmp_path / "numbered").mkdir(exist_ok=True)
        (tmp_path / "numbered" / name).symlink_to(scans / "train" / scan)
    words = r"in timm's natural order .* it would be .*: set images\.class_order = \"timm\""
    with pytest.raises(TeacherError, match=words):
        opened(tmp_path / "cache", tmp_path / "numbered", of_checkpoint(tmp_path))
    recipe = of_checkpoint(tmp_path, images__class_order="timm")
    found = opened(tmp_path / "cache", tmp_path / "numbered", recipe)  # other keys, other views
    assert read_sample(found).top1 >= 0.4


def test_a_teacher_with_random_weights_is_not_judged(scans, tmp_path):
    cache = opened(tmp_path / "cache", scans / "train", cache_recipe())
    assert read_sample(cache).top1 < 0.9


def test_a_sample_that_was_never_put_is_asked_by_the_next_writer(own_cache, filled, scans):
    (own_cache / "ledger" / "sample.json").unlink()
    assert read_sample(open_cache(Disk(own_cache))) is None
    cache = opened(own_cache, scans / "train", cache_recipe())
    assert read_sample(cache).to_document() == read_sample(filled).to_document()


def test_other_teacher_libraries_go_on_only_if_asked_and_only_with_the_same_answers(
    cli, own_cache, scans, tmp_path
):
    rewrite_manifest(own_cache, versions={**library_versions(), "torch": "1.0", "timm": "0.1"})
    recipe = tmp_path / "cache.toml"
    recipe.write_text(to_toml(cache_document()))
    grow = ["cache-teacher", recipe, "--data", scans / "train", "--out", own_cache, "--views", 4]
    done = cli(*grow, check=1)
    assert "timm 0.1 in the cache" in done.stderr
    assert "torch 1.0 in the cache" in done.stderr
    assert "complete" in cli(*grow, "--accept-teacher-libraries").stdout
    cache = open_cache(Disk(own_cache))
    assert missing_blocks(cache) == []
    document = read_sample(cache).to_document()
    document["ids"] = [[second, first] for first, second in document["ids"]]
    (own_cache / "ledger" / "sample.json").write_bytes(seal("sample", cache.owner, document))
    recipe, index = cache_recipe(views__count=4), index_images(scans / "train")
    with pytest.raises(ReplayRefused, match=r"its best classes|best classes are the same"):
        open_or_create(
            Disk(own_cache),
            recipe,
            index,
            build_teacher(recipe, index),
            accept_teacher_libraries=True,
        )


def test_another_normalisation_is_another_cache(own_cache, filled, scans, tmp_path):
    (member,) = filled.manifest.teacher["members"]
    other = {**filled.manifest.teacher, "members": [{**member, "mean": [0.0, 0.0, 0.0]}]}
    rewrite_manifest(own_cache, teacher=other)
    with pytest.raises(UserError, match="teacher normalization"):
        opened(own_cache, scans / "train", cache_recipe())
    with pytest.raises(UserError, match=r"teacher\.precision: fp32 in the cache, bf16 asked for"):
        opened(filled.place.root, scans / "train", cache_recipe(teacher__precision="bf16"))
