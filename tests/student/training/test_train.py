import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from repository import REPOSITORY
from small import CPU, cache_recipe, closed, fill_cache, student_document

from student.data.training_data import plain_data, replayed_data
from student.models.trial import ModelError
from student.recipe import StudentRecipe
from student.results.evaluate import evaluate_run
from student.results.export import export
from student.runs.checkpoint import load_checkpoint
from student.runs.metrics import read_metrics
from student.runs.run import RunError, open_run
from student.runs.run_weights import Weights, load_network, saved_state
from student.training.log_interval import SHARES, TrainingError
from student.training.start import start_or_continue
from student.training.train import EPOCH_SHARES, train
from teacher_cache.cache.blocks import Block, withdraw_block, write_block
from teacher_cache.cache.cache import absent_rows, open_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.cache.teacher_sample import read_sample
from teacher_cache.errors import (
    CacheError,
    DamagedRecords,
    ImagesChanged,
    MissingRecords,
    ReplayRefused,
    UserError,
)
from teacher_cache.images.index import ImagesError, index_images, rebase
from teacher_cache.networks.checkpoints import WeightsError
from teacher_cache.recipes.document import parse_recipe
from teacher_cache.record import Tail, TopK
from teacher_cache.storage.disk import Disk
from teacher_cache.storage.ledger import SAMPLE_KEY, BlockId, seal
from teacher_cache.teacher.networks import weights_sha256
from teacher_cache.verification.fidelity import Fidelity, Student, to_measures


def recipe_of(**changes):
    return parse_recipe(student_document(**changes), StudentRecipe, source="test")


def job(out, scans, cache=None, **changes):
    """The iterator that `cli.py train-student` drains, and its run."""
    recipe = recipe_of(**changes)
    if cache is None:
        data = plain_data(recipe, index_images(scans / "train"))
    else:
        opened = open_cache(Disk(cache))
        data = replayed_data(recipe, rebase(opened.index, scans / "train"), opened)
    validation = index_images(scans / "val", class_ids=data.index.class_ids)
    run = start_or_continue(out, recipe, data, validation)
    return train(run, data, validation, device=CPU), run


def trained(out, scans, cache=None, **changes):
    steps, run = job(out, scans, cache, **changes)
    for _ in steps:
        pass
    return run


def weights(run):
    """Digests of the trained and the averaged weights: equal digests are equal bytes."""
    saved = load_checkpoint(run.last)
    digests = []
    for state in (saved.model, saved.ema):
        network = load_network(run)
        network.load_state_dict(state)
        digests.append(weights_sha256(network))
    return digests


PLAIN = {"distill__alpha": 0.0, "views__size": 32}


@pytest.fixture(scope="module")
def unbroken(scans, filled, tmp_path_factory):
    """A run that nothing disturbed: 3 epochs of 5 steps."""
    return trained(tmp_path_factory.mktemp("run") / "unbroken", scans, filled.place.root)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_loader_workers_changes_no_byte_of_the_weights(
    unbroken, scans, filled, tmp_path, workers
):
    run = trained(tmp_path / "run", scans, filled.place.root, loader__workers=workers)
    assert weights(run) == weights(unbroken)


@pytest.mark.parametrize("stops", [(1,), (5,), (3, 4, 5)])
def test_a_run_that_was_stopped_and_continued_ends_with_the_same_bytes(
    unbroken, scans, filled, tmp_path, stops
):
    for steps in stops:
        running, _ = job(tmp_path / "run", scans, filled.place.root)
        for _ in itertools.islice(running, steps + 1):
            pass
        running.close()
    run = trained(tmp_path / "run", scans, filled.place.root)
    assert weights(run) == weights(unbroken)
    lines, expected = read_metrics(run.metrics), read_metrics(unbroken.metrics)
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    assert [line for line in lines if "top1" in line] == [
        line for line in expected if "top1" in line
    ]


def test_another_seed_gives_other_weights(unbroken, scans, filled, tmp_path):
    assert weights(trained(tmp_path / "run", scans, filled.place.root, run__seed=1)) != weights(
        unbroken
    )


def test_metrics_hold_the_first_step_every_interval_and_every_evaluation(unbroken):
    lines = read_metrics(unbroken.metrics)
    losses = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "top1" in line]
    assert [line["step"] for line in losses] == [1, 2, 4, 5, 6, 8, 10, 12, 14, 15]
    shares = {f"{name}_share" for name in SHARES}
    assert set(losses[0]) == {"step", "epoch", "loss", "ce", "kd", "lr", "images_per_s"} | shares
    assert [line["step"] for line in evaluations] == [5, 10, 15]
    assert len(lines) == len(losses) + 2 * len(evaluations)
    assert {"top1", "top5", "ema_top1", "ema_top5"} < set(evaluations[0])
    for line in losses:
        assert line["loss"] == pytest.approx(0.5 * line["ce"] + 0.5 * line["kd"], rel=1e-5)
    assert losses[-1]["lr"] < 0.001 < losses[0]["lr"] == 0.01


def test_a_run_leaves_last_best_and_a_summary(unbroken):
    summary = json.loads(unbroken.summary.read_text())
    last = [line for line in read_metrics(unbroken.metrics) if "top1" in line][-1]
    assert summary["ema_top1"] == last["ema_top1"]
    assert summary["parameters"] >= summary["parameters_folded"] > 0
    saved = load_checkpoint(unbroken.last)
    assert (saved.step, saved.optimizer is None) == (15, False)
    assert load_checkpoint(unbroken.best).optimizer is None
    assert saved.best_top1 == max(
        line["ema_top1"] for line in read_metrics(unbroken.metrics) if "top1" in line
    )


def test_a_run_that_is_closed_says_where_it_was_saved(scans, filled, tmp_path):
    running, run = job(tmp_path / "run", scans, filled.place.root)
    for _ in itertools.islice(running, 7 + 1):
        pass
    left = closed(running)
    assert (left.done, left.total, left.saved) == (7, 15, 7)
    assert load_checkpoint(run.last).step == 7


def test_a_finished_run_has_nothing_left_to_do(unbroken, scans, filled):
    before = unbroken.last.read_bytes()
    steps, _ = job(unbroken.folder, scans, filled.place.root)
    assert [progress.done for progress in steps] == [15]
    assert unbroken.last.read_bytes() == before


def test_training_learns_what_the_scans_show(scans, tmp_path):
    run = trained(
        tmp_path / "run",
        scans,
        **PLAIN,
        views__flip=0.0,
        views__randaugment=False,
        views__min_area=0.7,
        schedule__epochs=12,
    )
    assert json.loads(run.summary.read_text())["top1"] >= 80  # three classes: chance is 33


def test_micro_batches_of_a_network_without_batch_statistics_give_the_same_step(scans, tmp_path):
    """Accumulation is exact where rows do not meet: a vision transformer's losses agree."""
    losses = []
    for micro_batch in (16, 4):
        run = trained(
            tmp_path / str(micro_batch),
            scans,
            **PLAIN,
            student__model="test_vit",
            schedule__epochs=1,
            optimizer__micro_batch=micro_batch,
            run__log_every_steps=1,
        )
        losses.append([line["loss"] for line in read_metrics(run.metrics) if "loss" in line])
    np.testing.assert_allclose(losses[0], losses[1], rtol=2e-3)
    assert len(losses[0]) == 5


def test_a_student_of_another_size_sees_the_same_views_and_checks_them(filled, scans, tmp_path):
    run = trained(tmp_path / "run", scans, filled.place.root, student__size=48, schedule__epochs=1)
    assert open_run(run.folder).size == 48


def test_every_epoch_shows_a_new_view_and_reuse_must_be_allowed(filled, scans, tmp_path):
    with pytest.raises(MissingRecords, match=r"cache holds views 0-2, epoch 3 asks for view 3"):
        job(tmp_path / "run", scans, filled.place.root, schedule__epochs=4)
    recipe = recipe_of(schedule__epochs=7, views__reuse=True)
    data = replayed_data(recipe, rebase(filled.index, scans / "train"), filled)
    assert [data.view_of(epoch) for epoch in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_the_settings_of_a_run_are_those_that_count(filled, scans):
    recipe = recipe_of(student__size=48)
    index = rebase(filled.index, scans / "train")
    replayed = replayed_data(recipe, index, filled).settings(recipe)
    assert (replayed["student"]["size"], replayed["views"]["size"]) == (48, 32)
    assert (replayed["views"]["count"], replayed["views"]["reuse"]) == (3, False)
    recipe = recipe_of(**PLAIN, views__seed=5)
    plain = plain_data(recipe, index).settings(recipe)
    assert (plain["student"]["size"], plain["views"]["size"], plain["views"]["seed"]) == (32, 32, 5)
    assert recipe_of().views.size == 224, "what a recipe that leaves it out would show"


def test_without_a_cache_there_is_nothing_to_distil(scans, tmp_path):
    with pytest.raises(CacheError, match="pass --cache, or --set distill.alpha=0"):
        job(tmp_path / "run", scans)


def test_a_temperature_without_stored_tails_is_refused(filled, scans, tmp_path):
    with pytest.raises(CacheError, match=r"temperature is 3.0, the cache holds tails for 1.0, 2.0"):
        job(tmp_path / "run", scans, filled.place.root, distill__temperature=3.0)
    trained(
        tmp_path / "two", scans, filled.place.root, distill__temperature=2.0, schedule__epochs=1
    )


def test_views_that_the_recipe_wants_otherwise_are_refused(filled, scans, tmp_path):
    with pytest.raises(ReplayRefused, match="views.seed is 4 in the recipe, 0 in the cache"):
        job(tmp_path / "run", scans, filled.place.root, views__seed=4)
    job(tmp_path / "run", scans, filled.place.root, views__seed=0)


def test_a_batch_larger_than_the_data_is_an_error_not_zero_steps(filled, scans, tmp_path):
    steps, _ = job(tmp_path / "run", scans, filled.place.root, optimizer__batch_size=91)
    with pytest.raises(ImagesError, match="batch_size is 91, the data holds 90 images"):
        next(steps)


@pytest.mark.parametrize("change", ["replaced", "encoded anew", "gray", "exchanged"])
def test_a_changed_image_is_found_when_it_is_first_seen(filled, own_scans, tmp_path, change):
    path = own_scans / "train" / filled.index.keys[33]  # its pixels are checked in view 1 alone
    if change == "replaced":
        Image.new("RGB", (40, 40), "red").save(path)
    elif change == "encoded anew":  # the same pixels
        Image.open(path).save(path, compress_level=1)
    elif change == "gray":
        Image.open(path).convert("L").convert("RGB").save(path, compress_level=9)
    else:
        other = own_scans / "train" / filled.index.keys[70]
        data = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    running, run = job(tmp_path / "run", own_scans, filled.place.root)
    with pytest.raises(
        ImagesChanged, match=r"\.png: its bytes are not those that the teacher read"
    ):
        list(running)
    assert not run.last.exists() or load_checkpoint(run.last).step < 5  # not an epoch went by


def test_pixels_that_are_not_the_teachers_are_found_though_the_image_is_the_same(
    own_cache, scans, tmp_path
):
    """As on a machine that renders otherwise: the record of one picture says other pixels."""
    cache = open_cache(Disk(own_cache))
    block = BlockId(0, 1)
    slab, rows = read_slab(cache, 0), cache.rows(1)
    part = slice(rows.start, rows.stop)
    topk = TopK(slab.ids_NK[part], slab.logp_NK[part], slab.tail_NT[part])
    withdraw_block(cache, block, "test")
    write_block(cache, Block(block, topk, slab.check[1:2] + 1), {})
    key = cache.index.keys[32]
    with pytest.raises(ReplayRefused, match=rf"{key}, view 0: its pixels have CRC-32"):
        trained(tmp_path / "run", scans, own_cache)


def test_missing_images_are_counted_and_named(filled, own_scans, tmp_path):
    key = filled.index.keys[5]
    (own_scans / "train" / key).unlink()
    with pytest.raises(ImagesError, match=rf"lacks 1 image \({key}\)"):
        job(tmp_path / "run", own_scans, filled.place.root)


def test_an_image_that_became_unreadable_is_named_and_the_state_kept(filled, own_scans, tmp_path):
    running, run = job(tmp_path / "run", own_scans, filled.place.root)
    for _ in itertools.islice(running, 5 + 1):
        pass
    running.close()
    saved = run.last.read_bytes()
    for path in (own_scans / "train").rglob("*.png"):
        path.write_bytes(b"")
    steps, _ = job(tmp_path / "run", own_scans, filled.place.root)
    with pytest.raises(ImagesChanged, match=r"\.png: its bytes are not those .*restore the images"):
        list(steps)
    assert run.last.read_bytes() == saved


def test_a_half_filled_cache_trains_up_to_the_hole_and_names_it(own_cache, scans, tmp_path):
    (own_cache / "ledger" / "1" / "2.json").unlink()
    steps, run = job(tmp_path / "run", scans, own_cache)
    with pytest.raises(MissingRecords, match="view 1, rows 64-89: not filled yet"):
        list(steps)
    assert load_checkpoint(run.last).step == 5
    fill_cache(own_cache, scans / "train", cache_recipe())
    assert load_checkpoint(trained(tmp_path / "run", scans, own_cache).last).step == 15


def test_a_flipped_byte_in_the_cache_stops_training(own_cache, scans, tmp_path):
    path = own_cache / "logp" / "c.0.1.0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedRecords, match="view 0, rows 32-63: logp"):
        trained(tmp_path / "run", scans, own_cache)


def test_absent_rows_are_never_trained_on(own_scans, tmp_path):
    (own_scans / "train" / "digit-1" / "010.png").write_bytes(b"")
    recipe = cache_recipe(images__skip_unreadable=True)
    cache = fill_cache(tmp_path / "cache", own_scans / "train", recipe)
    run = trained(tmp_path / "run", own_scans, cache.place.root)
    assert load_checkpoint(run.last).step == 15
    assert all(np.isfinite(m["loss"]) for m in read_metrics(run.metrics) if "loss" in m)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(scans, tmp_path):
    changes = PLAIN | {"schedule__epochs": 2, "run__log_every_steps": 100}
    running, run = job(tmp_path / "run", scans, **changes)
    for _ in itertools.islice(running, 5 + 1):
        pass
    running.close()
    saved = load_checkpoint(run.last)
    broken = dict(saved.model)
    name = next(name for name, value in broken.items() if value.is_floating_point())
    broken[name] = torch.full_like(broken[name], float("nan"))
    torch.save(
        {
            "step": 5,
            "model": broken,
            "ema": saved.ema,
            "optimizer": saved.optimizer,
            "best_top1": 0.0,
            "seconds": 0.0,
        },
        run.last,
    )
    before = run.last.read_bytes()
    steps, _ = job(tmp_path / "run", scans, **changes)
    with pytest.raises(TrainingError, match=r"the loss of step 6 is nan .*digit-\d/\d+\.png"):
        list(steps)
    assert run.last.read_bytes() == before


def test_another_recipe_or_data_set_in_the_same_run_is_refused(unbroken, filled, scans, tmp_path):
    with pytest.raises(RunError, match=r"optimizer.lr: 0.01 there, 0.02 asked for"):
        job(unbroken.folder, scans, filled.place.root, optimizer__lr=0.02)
    with pytest.raises(RunError, match="holds another run: .*cache recipe"):
        job(unbroken.folder, scans, distill__alpha=0.0, views__size=32)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        job(tmp_path / "notes", scans, filled.place.root)
    with pytest.raises(RunError, match="no run there"):
        open_run(tmp_path / "nowhere")


def test_a_cache_of_another_place_is_the_same_data(unbroken, own_cache, scans):
    steps, _ = job(unbroken.folder, scans, own_cache)
    assert [progress.done for progress in steps] == [15]


def test_a_torn_checkpoint_is_refused_in_plain_words(unbroken, filled, scans, tmp_path):
    folder = shutil.copytree(unbroken.folder, tmp_path / "run")
    (folder / "last.pt").write_bytes((folder / "last.pt").read_bytes()[:1000])
    steps, _ = job(folder, scans, filled.place.root)
    with pytest.raises(WeightsError, match=r"last.pt: cannot be read as a checkpoint"):
        next(steps)


@pytest.mark.slow
def test_two_processes_never_train_one_run(scans, filled, tmp_path):
    running, run = job(tmp_path / "run", scans, filled.place.root)
    next(running)
    code = (
        "import sys; from pathlib import Path; from student.runs.run import locked, open_run\n"
        f"with locked(open_run(Path({str(run.folder)!r}))): pass"
    )
    second = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert "RunError" in second.stderr
    assert "is being trained by another process" in second.stderr
    running.close()
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_another_crop_is_another_run(unbroken, filled, scans):
    with pytest.raises(RunError, match="evaluation.crop_ratio: 1.0 there, 0.5 asked for"):
        job(unbroken.folder, scans, filled.place.root, evaluation__crop_ratio=0.5)


def test_an_average_can_be_left_out_and_one_that_is_too_long_is_warned_of(scans, tmp_path, caplog):
    run = trained(tmp_path / "none", scans, **PLAIN, ema__decay=0.0, schedule__epochs=1)
    assert load_checkpoint(run.last).ema is None
    assert "ema_top1" not in json.loads(run.summary.read_text())
    assert not caplog.records
    changes = PLAIN | {"ema__decay": 0.9999, "ema__warmup": False, "schedule__epochs": 1}
    trained(tmp_path / "long", scans, **changes)
    assert "averages over about 10000 steps, this run has 5" in caplog.text


def test_a_warm_up_of_nearly_the_whole_run_still_trains(scans, tmp_path):
    trained(tmp_path / "run", scans, **PLAIN, schedule__epochs=1, schedule__warmup_epochs=0.99)


def test_images_that_break_later_are_refused_by_who_appends_views(own_scans, tmp_path):
    cache = fill_cache(tmp_path / "cache", own_scans / "train", cache_recipe())
    (own_scans / "train" / "digit-1" / "010.png").write_bytes(b"")
    recipe = cache_recipe(views__count=4, images__skip_unreadable=True)
    with pytest.raises(ImagesChanged, match=r"010\.png: its bytes are not those that the teacher"):
        fill_cache(tmp_path / "cache", own_scans / "train", recipe)
    assert absent_rows(open_cache(cache.place)) == frozenset()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_shares_of_an_interval_say_where_its_time_went(scans, filled, tmp_path, workers):
    run = trained(tmp_path / "run", scans, filled.place.root, loader__workers=workers)
    lines = [line for line in read_metrics(run.metrics) if "loss" in line]
    for line in lines:
        shares = [line[f"{name}_share"] for name in SHARES]
        assert all(0 <= share <= 1 for share in shares)
        assert 0.3 < sum(shares) < 1.001


def test_every_epoch_the_last_too_says_what_its_evaluation_and_saving_took(scans, filled, tmp_path):
    run = trained(
        tmp_path / "run", scans, filled.place.root,
        evaluation__every_epochs=3, run__log_every_steps=1, run__checkpoint_every_s=1e-6,
    )  # fmt: skip
    lines = read_metrics(run.metrics)
    epochs = [line for line in lines if "checkpoint_share" in line]
    names = {"step", "epoch", *(f"{name}_share" for name in EPOCH_SHARES)}
    assert [(line["step"], line["epoch"]) for line in epochs] == [(5, 0), (10, 1), (15, 2)]
    assert lines[-1] == epochs[-1]
    assert all(set(line) == names for line in epochs)
    assert [line["evaluation_share"] > 0 for line in epochs] == [False, False, True]
    for line in epochs:
        assert 0 < line["checkpoint_share"] < 1 - line["evaluation_share"]
    for line in lines:
        if "loss" in line:  # before each step it was saved, which is not its interval's
            assert 0.3 < sum(line[f"{name}_share"] for name in SHARES) < 1.001


def test_an_evaluation_that_fails_leaves_its_epoch_s_losses_on_record(
    filled, scans, own_scans, tmp_path
):
    steps, run = job(tmp_path / "run", own_scans, filled.place.root)
    for _ in itertools.islice(steps, 3):
        pass
    kept = {path: path.read_bytes() for path in (own_scans / "val").rglob("*.png")}
    for path in kept:
        path.write_bytes(b"")
    with pytest.raises(ImagesError, match="repair it, or set images.skip_unreadable = true"):
        list(steps)
    assert [line["step"] for line in read_metrics(run.metrics)] == [1, 2, 4, 5]
    assert load_checkpoint(run.last).step == 5  # saved before it was evaluated
    for path, data in kept.items():
        path.write_bytes(data)
    steps, run = job(tmp_path / "run", own_scans, filled.place.root)
    for _ in itertools.islice(steps, 2):  # the evaluation that was owed comes first
        pass
    steps.close()
    assert [line["step"] for line in read_metrics(run.metrics) if "top1" in line] == [5]
    assert load_checkpoint(run.best).step == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_what_an_evaluation_cannot_do_is_said_before_the_first_step(
    scans, own_scans, tmp_path, workers
):
    (own_scans / "val" / "digit-1" / "030.png").write_bytes(b"no image")
    changes = {**PLAIN, "loader__workers": workers}
    with pytest.raises(ImagesError, match=r"digit-1/030.png: .*: repair it, or set images.skip_un"):
        trained(tmp_path / "damaged", own_scans, **changes)
    assert not read_metrics(open_run(tmp_path / "damaged").metrics)
    run = trained(
        tmp_path / "damaged", own_scans, **changes, images__skip_unreadable=True, schedule__epochs=3
    )
    shares = {line["top1"] * 29 / 100 for line in read_metrics(run.metrics) if "top1" in line}
    assert all(share == pytest.approx(round(share), abs=1e-4) for share in shares)  # of 29 images
    with pytest.raises(
        UserError, match=r"loader.memory_mb allows 1: .*or lower evaluation.batch_s"
    ):
        trained(
            tmp_path / "large", scans, **{**PLAIN, "loader__workers": 1, "loader__memory_mb": 1},
            student__size=128, optimizer__batch_size=2, evaluation__batch_size=30,
            schedule__epochs=1,
        )  # fmt: skip
    assert not read_metrics(open_run(tmp_path / "large").metrics)


def test_a_damaged_image_of_plain_training_is_left_out_and_the_run_goes_on(
    own_scans, tmp_path, caplog
):
    name = own_scans / "train" / "digit-1" / "003.png"
    name.write_bytes(b"no image")
    with pytest.raises(
        ImagesError, match=r"repair it, or set images.skip_unreadable = true .*kept"
    ):
        trained(tmp_path / "run", own_scans, **PLAIN)
    run = trained(tmp_path / "run", own_scans, **PLAIN, images__skip_unreadable=True)
    assert run.summary.exists()
    (told,) = [line for line in caplog.messages if "left out" in line]
    assert "digit-1/003.png" in told
    for number in range(10, 14):
        (name.parent / f"{number:03}.png").write_bytes(b"no image")
    with pytest.raises(ImagesError, match=r"2 of 90 images are unreadable, at most 1 .*max_unread"):
        trained(tmp_path / "many", own_scans, **PLAIN, images__skip_unreadable=True)


def test_a_run_in_which_all_images_can_be_read_does_not_depend_on_the_rule(scans, tmp_path):
    plain = trained(tmp_path / "plain", scans, **PLAIN, schedule__epochs=1)
    rule = {"images__skip_unreadable": True, "images__max_unreadable": 0.5}
    other = trained(tmp_path / "rule", scans, **PLAIN, **rule, schedule__epochs=1)
    assert weights(plain) == weights(other)
    assert plain.recipe.identity() == other.recipe.identity()


def test_another_validation_set_is_told_and_logged_at_its_step(own_scans, tmp_path, caplog):
    running, run = job(tmp_path / "run", own_scans, **PLAIN, schedule__epochs=2)
    for _ in itertools.islice(running, 5 + 1):
        pass
    running.close()
    assert load_checkpoint(run.last).best_top1 >= 0
    (own_scans / "val" / "digit-1" / "030.png").unlink()
    run = trained(tmp_path / "run", own_scans, **PLAIN, schedule__epochs=2)
    (told,) = [line for line in caplog.messages if "other validation images" in line]
    assert "up to step 5: " in told
    lines = read_metrics(run.metrics)
    (at,) = [n for n, line in enumerate(lines) if "validation_images_changed" in line]
    assert lines[at]["step"] == 5
    after = [line["ema_top1"] for line in lines[at:] if "ema_top1" in line]
    assert json.loads(run.summary.read_text())["best_ema_top1"] == max(after)
    trained(tmp_path / "run", own_scans, **PLAIN, schedule__epochs=2)  # told once
    assert sum("other validation images" in line for line in caplog.messages) == 1


def test_settings_that_came_later_are_not_in_the_digest_of_a_recipe_that_leaves_them_out():
    plain = recipe_of().identity()
    assert not {"precision", "compile", "sync_batchnorm"} & plain["run"].keys()
    for change in ({"run__precision": "fp32"}, {"run__compile": True}):
        (name,) = recipe_of(**change).identity()["run"].keys() - plain["run"].keys()
        assert f"run__{name}" in change


def test_the_loss_is_not_in_the_digest_of_a_recipe_that_takes_the_papers():
    plain = recipe_of().identity()["distill"]
    assert plain == {"alpha": 0.5, "temperature": 1.0, "tail": "uniform"}
    assert recipe_of(distill__loss="kl").identity()["distill"] == plain
    assert recipe_of(distill__loss="jsd").identity()["distill"] == plain | {"loss": "jsd"}


def test_a_run_of_the_earlier_default_tail_is_continued_by_the_same_command(
    scans, filled, tmp_path
):
    """The recipe names no tail; the run began when that meant `bucket`."""
    cache = filled.place.root
    steps, run = job(tmp_path / "run", scans, cache, distill__tail="bucket")
    for _ in range(3):
        next(steps)
    closed(steps)
    steps, run = job(tmp_path / "run", scans, cache)
    assert run.recipe.distill.tail is Tail.BUCKET
    for _ in steps:
        pass
    whole = trained(tmp_path / "whole", scans, cache, distill__tail="bucket")
    assert weights(run) == weights(whole)
    with pytest.raises(RunError, match="distill.tail: bucket there, uniform asked for"):
        job(tmp_path / "run", scans, cache, distill__tail="uniform")


@pytest.mark.parametrize("mean", [0.94, 0.96])
def test_too_few_classes_for_a_temperature_are_warned_of_with_the_cosine(
    scans, own_cache, tmp_path, caplog, mean
):
    cache = open_cache(Disk(own_cache))
    found = {
        (2.0, Tail.UNIFORM, Student.FRESH): Fidelity(0.99, 0.9, 0.8),
        (2.0, Tail.UNIFORM, Student.TRAINED): Fidelity(mean, 0.75, -0.5),
    }
    sample = replace(read_sample(cache), measures=to_measures(found))
    (own_cache / SAMPLE_KEY).write_bytes(seal("sample", cache.owner, sample.to_document()))
    changes = {"distill__temperature": 2.0, "schedule__epochs": 1}
    run = trained(tmp_path / "run", scans, own_cache, **changes)
    expected = "0.940 in the mean for a trained-like student (5%: 0.750), expected 0.95"
    assert (expected in caplog.text) == (mean < 0.95)
    cosines = json.loads(run.summary.read_text())["gradient_cosine"]
    assert cosines["trained-like"] == {"mean": mean, "5%": 0.75, "least": -0.5}
    assert cosines["fresh"]["mean"] == 0.99
    caplog.clear()
    trained(tmp_path / "other", scans, own_cache, distill__loss="jsd", **changes)
    assert not caplog.records, "the measure is that of the paper's loss"


@pytest.mark.parametrize("loss", ["reverse_kl", "jsd", "hard", "dist", "dkd"])
def test_the_other_losses_train_too(scans, filled, tmp_path, loss):
    run = trained(
        tmp_path / "run", scans, filled.place.root, distill__loss=loss, schedule__epochs=1
    )
    with pytest.raises(RunError, match=f"distill.loss: {loss} there, None asked for"):
        job(run.folder, scans, filled.place.root, schedule__epochs=1)


def test_standardized_logits_need_all_classes_or_their_moments(scans, filled, tmp_path):
    changes = {"distill__loss": "standardized", "schedule__epochs": 1}
    with pytest.raises(CacheError, match="of all 3 logits, the cache keeps the best 2 classes and"):
        job(tmp_path / "run", scans, filled.place.root, **changes)
    whole = fill_cache(tmp_path / "cache", scans / "train", cache_recipe(topk__k=3))
    trained(tmp_path / "run", scans, whole.place.root, **changes)
    recipe = cache_recipe(topk__extras=["moments"])
    moments = fill_cache(tmp_path / "moments", scans / "train", recipe)
    trained(tmp_path / "other", scans, moments.place.root, **changes)


def test_bfloat16_trains_and_is_another_run_than_float32(scans, tmp_path):
    changes = PLAIN | {"schedule__epochs": 1}
    losses = {}
    for precision in ("fp32", "bf16"):
        run = trained(tmp_path / precision, scans, **changes, run__precision=precision)
        assert all(v.dtype != torch.bfloat16 for v in load_checkpoint(run.last).model.values())
        losses[precision] = [m["loss"] for m in read_metrics(run.metrics) if "loss" in m]
    assert losses["bf16"] != losses["fp32"]
    np.testing.assert_allclose(losses["bf16"], losses["fp32"], rtol=0.05)
    with pytest.raises(RunError, match=r"run.precision: bf16 there, fp32 asked for"):
        job(tmp_path / "bf16", scans, **changes, run__precision="fp32")


def test_the_best_weights_are_those_of_the_best_evaluation(scans, tmp_path):
    # a rate that soon spoils what the first epochs learnt
    run = trained(tmp_path / "run", scans, **PLAIN, schedule__epochs=4, optimizer__lr=0.05)
    best = saved_state(run, Weights.BEST)
    evaluations = {m["step"]: m["ema_top1"] for m in read_metrics(run.metrics) if "top1" in m}
    assert evaluations[best.step] == max(evaluations.values()) == best.best_top1
    network = load_network(run, Weights.BEST)
    assert all(torch.equal(value, best.ema[name]) for name, value in network.state_dict().items())
    validation = index_images(scans / "val", class_ids=run.class_ids)
    facts = evaluate_run(run, validation, CPU, Weights.BEST)
    assert facts["top1"] == best.best_top1
    assert (facts["weights"], facts["standing"]) == ("best", f"step {best.step} of 20")


def test_what_an_unfinished_run_gives_says_so(scans, tmp_path):
    running, run = job(tmp_path / "run", scans, **PLAIN)
    for _ in itertools.islice(running, 7 + 1):
        pass
    running.close()
    validation = index_images(scans / "val", class_ids=run.class_ids)
    facts = evaluate_run(run, validation, CPU)
    assert facts["standing"] == "step 7 of 15, unfinished: the run has not ended"
    done = export(run, tmp_path / "student.safetensors")
    assert done.standing == facts["standing"]
    assert "averaged (step 7 of 15, unfinished: the run has not ended; ema_top1" in (
        done.card.read_text()
    )


@pytest.mark.parametrize("name", ["kron", "kronw"])
def test_an_optimizer_that_compiles_itself_is_refused(scans, tmp_path, name):
    steps, _ = job(tmp_path / "run", scans, **PLAIN, optimizer__name=name)
    with pytest.raises(ModelError, match=r"hangs in its first step.*such as lamb"):
        next(steps)
