"""The same on the CPU and on a CUDA device: records, batches, steps; and what only a device has."""

import itertools
import json
import logging
import math
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from commands import cli_environment
from repository import REPOSITORY
from small import CPU, build_teacher, cache_recipe, fill_cache, student_document, to_toml

from student.data.batches import MicroBatch, batches
from student.data.prefetch import on_device
from student.data.run_plan import plan_run
from student.data.training_data import replayed_data
from student.recipe import StudentRecipe
from student.results.evaluate import evaluate_run
from student.runs.metrics import read_metrics
from student.training.start import start_or_continue
from student.training.train import train
from student.training.trainee import Trainee
from teacher_cache.cache.slab import read_slab
from teacher_cache.images.index import index_images, rebase
from teacher_cache.loading.loader import LoaderSettings, rendered
from teacher_cache.loading.pinned import Pin
from teacher_cache.loading.queue import render_here
from teacher_cache.loading.renderers import CenterRenderer, Request
from teacher_cache.loading.shared_memory import SharedBytes
from teacher_cache.recipes.document import parse_recipe
from teacher_cache.stopwatch import Stopwatch
from teacher_cache.teacher.answers import answers, top_k
from teacher_cache.verification.audit import audit

pytestmark = pytest.mark.filterwarnings(
    "ignore:Synchronization debug mode is a prototype:UserWarning"
)


@pytest.fixture
def without_waiting(device):
    """Inside, whatever torch knows to make the host wait for a CUDA device is an error."""

    @contextmanager
    def inside():
        if device.type == "cpu":
            yield
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return inside


def job(out, scans, cache, device, **changes):
    """The iterator that `cli.py train-student` drains, and its run."""
    recipe = parse_recipe(student_document(**changes), StudentRecipe, source="test")
    data = replayed_data(recipe, rebase(cache.index, scans / "train"), cache)
    validation = index_images(scans / "val", class_ids=data.index.class_ids)
    run = start_or_continue(out, recipe, data, validation)
    return train(run, data, validation, device=device), run, validation


def test_records_agree_with_the_cpus(device, scans, filled, tmp_path):
    recipe = cache_recipe(loader__workers=1)
    cache = fill_cache(tmp_path / "cache", scans / "train", recipe, device)
    index = index_images(scans / "train")
    pixels = render_here(CenterRenderer(index, 32, 1.0, "bicubic"), Request(np.arange(16), (0,)))
    own, cpus = (
        build_teacher(recipe, index, where).logits(pixels.pixels_GBHWC[0]).cpu()
        for where in (device, CPU)
    )
    # bfloat16 features on CUDA; on the CPU the same arithmetic, and the same bits
    assert (own - cpus).abs().max() <= (0.05 if device.type == "cuda" else 0) * cpus.abs().max()
    for view in range(3):
        slab, expected = read_slab(cache, view), read_slab(filled, view)
        np.testing.assert_array_equal(slab.check, expected.check)
        largest = 0.01 if device.type == "cuda" else 0
        np.testing.assert_allclose(slab.logp_NK, expected.logp_NK, atol=largest, rtol=0)
        np.testing.assert_allclose(slab.tail_NT, expected.tail_NT, atol=largest, rtol=0)
    assert audit(cache, index, build_teacher(recipe, index), recipe, records=270, seed=0).passed


def test_top_k_of_the_same_logits_is_the_cpus_and_waits_for_nothing_before_it_is_fetched(
    device, without_waiting
):
    logits = torch.randn((64, 1000), generator=torch.Generator().manual_seed(0)).bfloat16().float()
    assert any(len(row.unique()) < 1000 for row in logits)  # equal ones
    expected = top_k(logits, k=20, temperatures=(1.0, 4.0))
    there = logits.to(device)
    with without_waiting():
        asked = answers(there, k=20, temperatures=(1.0, 4.0))
    got = asked.fetch()
    np.testing.assert_array_equal(got.ids_BK, expected.ids_BK)
    np.testing.assert_allclose(got.logp_BK, expected.logp_BK, rtol=2.0**-10)
    np.testing.assert_allclose(got.tail_BT, expected.tail_BT, rtol=2.0**-10)
    there[3, 5] = torch.nan
    with pytest.raises(ValueError, match="not finite in rows 3 of 64"):
        top_k(there, k=20, temperatures=(1.0,))


def test_batches_on_the_device_are_those_that_were_rendered_however_late_they_are_copied_and_used(
    device, scans
):
    renderer = CenterRenderer(index_images(scans / "train"), 128, 1.0, "bicubic")
    random = np.random.default_rng(0)
    requests = [Request(random.permutation(90)[:10], (0,)) for _ in range(24)]
    labels, seen = torch.zeros(10, dtype=torch.int64), []
    settings = LoaderSettings(2, memory_mb=2, pinned=device.type == "cuda")  # four slots

    def late():
        if device.type == "cuda":
            torch.cuda._sleep(10_000_000)  # milliseconds of the stream that is current

    def delayed(loader):
        for found in loader:
            late()  # the copy
            yield [MicroBatch(found.request.rows, found.pixels_GBHWC[0], labels, None)]

    with rendered(renderer, requests, settings, largest=(1, 10)) as loader:
        for (batch,) in on_device(delayed(loader), device, Stopwatch()):
            late()  # the use
            seen.append(batch.pixels_BHWC.clone())
    for request, pixels in zip(requests, seen, strict=True):
        assert pixels.device.type == device.type
        assert torch.equal(pixels.cpu(), render_here(renderer, request).pixels_GBHWC[0])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer__micro_batch": 4, "run__channels_last": True},
        {"distill__tail": "uniform", "distill__temperature": 2.0, "run__precision": "fp32"},
        {"student__model": "test_vit", "run__precision": "bf16"},
    ],
)
def test_a_step_waits_for_nothing_on_the_device(device, without_waiting, scans, filled, changes):
    recipe = parse_recipe(student_document(**changes), StudentRecipe, source="test")
    data = replayed_data(recipe, rebase(filled.index, scans / "train"), filled)
    trainee = Trainee.build(recipe, data.class_count, data.renderer.size, device)
    settings = LoaderSettings(1, pinned=device.type == "cuda")
    with batches(data, plan_run(recipe, data), start_step=0, settings=settings) as stream:
        ready = (step for step in on_device(stream, device, Stopwatch()) if step)
        # the first two, in which libraries prepare themselves, may wait
        losses = [trainee.step(next(ready), lr=0.01, step=step) for step in (0, 1)]
        with without_waiting():
            losses += [trainee.step(next(ready), lr=0.01, step=step) for step in range(2, 6)]
    assert torch.isfinite(torch.stack(losses)).all()
    assert all(parameter.device.type == device.type for parameter in trainee.network.parameters())


def test_a_step_of_many_micro_batches_is_handed_over_without_copies(scans, filled):
    recipe = parse_recipe(student_document(optimizer__micro_batch=2), StudentRecipe, source="test")
    data = replayed_data(recipe, rebase(filled.index, scans / "train"), filled)
    with batches(data, plan_run(recipe, data), start_step=0, settings=LoaderSettings(1)) as stream:
        memory = stream._loader._queue.memory
        first = np.frombuffer(memory.memory, np.uint8).ctypes.data
        for step in itertools.islice((step for step in stream if step), 10):
            assert len(step) == 8
            for batch in step:
                assert first <= batch.pixels_BHWC.data_ptr() < first + memory.size


def test_a_run_begins_on_one_device_and_ends_on_another(device, scans, filled, tmp_path):
    changes = {"loader__workers": 1, "run__log_every_steps": 1, "optimizer__micro_batch": 8}
    steps, run, _ = job(tmp_path / "run", scans, filled, device, **changes)
    for _ in itertools.islice(steps, 8):
        pass
    steps.close()
    steps, run, validation = job(tmp_path / "run", scans, filled, CPU, **changes)
    for _ in steps:
        pass
    plain, cpus, _ = job(tmp_path / "cpu", scans, filled, CPU, **changes)
    for _ in plain:
        pass
    lines, expected = read_metrics(run.metrics), read_metrics(cpus.metrics)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 15
    assert all(map(math.isfinite, losses))
    near = 0.05 if device.type == "cuda" else 0  # bfloat16, one step from the same weights
    assert losses[0] == pytest.approx(expected[0]["loss"], rel=near)
    facts = evaluate_run(run, validation, device)
    # 30 images: near ties may fall otherwise in float32 of another device
    assert facts["top1"] == pytest.approx(facts["folded_top1"], abs=10)


@pytest.mark.gpu
def test_a_refused_page_locking_is_told_once_and_leaves_no_error_behind(caplog):
    memory = SharedBytes(1 << 20)
    with caplog.at_level(logging.WARNING):
        pin = Pin.of(memory)
        assert pin is not None
        assert Pin.of(memory) is None  # it is locked already
    assert "cannot be page-locked (CUDA error" in caplog.text
    assert torch.ones(3, device="cuda").sum().item() == 3
    view = torch.frombuffer(memory.memory, dtype=torch.uint8)
    assert view.is_pinned()
    del view, memory
    assert torch.ones(3, device="cuda").sum().item() == 3


@pytest.mark.gpu
@pytest.mark.slow
def test_two_gpus_train_the_run_of_one_process(scans, filled, tmp_path):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    changes = {
        "student__model": "test_vit", "optimizer__micro_batch": 4, "run__precision": "fp32",
    }  # fmt: skip
    recipe = tmp_path / "student.toml"
    recipe.write_text(to_toml(student_document(**changes)))
    subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            REPOSITORY / "cli.py", "train-student", recipe, "--cache", filled.place.root,
            "--data", scans / "train", "--val", scans / "val", "--out", tmp_path / "two",
            "--device", "cuda",
        ],
        cwd=tmp_path, env=cli_environment(tmp_path), check=True, timeout=300,
    )  # fmt: skip
    steps, run, _ = job(tmp_path / "one", scans, filled, torch.device("cuda"), **changes)
    for _ in steps:
        pass
    losses = [
        [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
        for folder in (tmp_path / "two", run.folder)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["ranks"] == 2
