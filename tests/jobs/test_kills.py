"""Real processes, real signals: what a killed job leaves is continued to the same bytes."""

import json
import signal
import time

import numpy as np
import pytest
from commands import sigkill, start
from small import cache_document, newest_job, student_document, to_toml

from student.runs.checkpoint import load_checkpoint
from student.runs.metrics import read_metrics
from teacher_cache.cache.blocks import committed_blocks, missing_blocks
from teacher_cache.cache.cache import open_cache
from teacher_cache.cache.slab import read_slab
from teacher_cache.storage.disk import Disk

pytestmark = pytest.mark.kill
VIEWS = 24


@pytest.fixture
def long_cache(tmp_path, scans):
    """A `cache-teacher` command of a few seconds' work, into a folder of one's choice."""
    recipe = tmp_path / "cache.toml"
    recipe.write_text(to_toml(cache_document(views__count=VIEWS, views__size=96)))

    def arguments(out, *more):
        return ["cache-teacher", recipe, "--data", scans / "train", "--out", out, *more]

    return arguments


@pytest.fixture
def long_run(tmp_path, scans, filled):
    """A `train-student` command of a few seconds' work, 12 epochs over 3 views."""
    recipe = tmp_path / "student.toml"
    document = student_document(
        schedule__epochs=12, views__reuse=True, student__size=64, run__checkpoint_every_s=0.3
    )
    recipe.write_text(to_toml(document))

    def arguments(out, *more):
        return [
            "train-student", recipe, "--cache", filled.place.root, "--data", scans / "train",
            "--val", scans / "val", "--out", out, *more,
        ]  # fmt: skip

    return arguments


def wait_for(process, condition, timeout_s=900.0):
    """Poll until the job is where it shall be hit; it must still be alive then."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def blocks_of(cache):
    return committed_blocks(Disk(cache))


def records(root):
    cache = open_cache(Disk(root))
    slabs = [read_slab(cache, view) for view in range(cache.view_count)]
    return [(s.ids_NK, s.logp_NK.view("u2"), s.tail_NT.view("u2"), s.check) for s in slabs]


def assert_same_records(one, other):
    for a, b in zip(records(one), records(other), strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def ledger_stamps(root):
    return {path: path.stat().st_mtime_ns for path in (root / "ledger").rglob("*.json")}


def measured_at(run):
    """The steps of losses and accuracies; an epoch's shares of time may be lost with a process."""
    lines = read_metrics(run / "metrics.jsonl")
    return [line["step"] for line in lines if "loss" in line or "top1" in line]


def kill_while_filling(tmp_path, arguments, root, at_least):
    process = start(tmp_path, arguments)
    wait_for(process, lambda: len(blocks_of(root)) >= at_least)
    sigkill(process)
    return process.returncode


@pytest.mark.slow
def test_a_cache_filled_across_five_sigkills_holds_the_records_of_an_unbroken_fill(
    process, long_cache, tmp_path
):
    process(*long_cache("unbroken", "--set", "loader.workers=1"))
    killed, kept = tmp_path / "killed", {}
    for round_ in range(5):
        at_least = min(len(kept) + 1 + 3 * round_, 3 * VIEWS - 4)
        code = kill_while_filling(tmp_path, long_cache(killed), killed, at_least)
        assert code == -signal.SIGKILL
        stamps = ledger_stamps(killed)
        assert kept.items() <= stamps.items()  # no committed block was touched, let alone redone
        kept = stamps
    assert len(missing_blocks(open_cache(Disk(killed)))) > 0
    process(*long_cache(killed))
    assert kept.items() <= ledger_stamps(killed).items()
    assert_same_records(killed, tmp_path / "unbroken")
    job = json.loads(process("inspect-cache", killed, "--json").stdout)
    assert job["complete views"] == VIEWS


@pytest.mark.slow
def test_a_run_killed_mid_epoch_ends_with_the_bytes_of_an_unbroken_one(process, long_run, tmp_path):
    process(*long_run("unbroken"))
    killed = tmp_path / "killed"
    for steps in (7, 23, 41):
        running = start(tmp_path, long_run(killed))
        wait_for(
            running,
            lambda past=steps: any(
                m["step"] > past for m in read_metrics(killed / "metrics.jsonl")
            ),
        )
        sigkill(running)
        assert load_checkpoint(killed / "last.pt").step < 60
    process(*long_run(killed))
    one, other = (load_checkpoint(tmp_path / name / "last.pt") for name in ("killed", "unbroken"))
    for a, b in ((one.model, other.model), (one.ema, other.ema)):
        assert a.keys() == b.keys()
        assert all(a[name].numpy().tobytes() == b[name].numpy().tobytes() for name in a)
    assert measured_at(killed) == measured_at(tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130)],
)
@pytest.mark.slow
def test_the_first_signal_commits_the_tile_at_hand_and_says_how_to_continue(
    process, long_cache, tmp_path, number, code
):
    root = tmp_path / "cache"
    running = start(tmp_path, long_cache(root, "--set", "loader.workers=1"))
    wait_for(running, lambda: len(blocks_of(root)) >= 2)
    running.send_signal(number)
    _, error = running.communicate(timeout=900)
    assert running.returncode == code, error
    assert f"stopped by {number.name}; saved: the same command continues" in error
    assert "Traceback" not in error
    left = missing_blocks(open_cache(Disk(root)))
    assert 0 < len(left) < 3 * VIEWS
    assert len(left) % 2 == 0  # tiles of two views, none half committed
    job, cache = newest_job(tmp_path), open_cache(Disk(root))
    stored = sum(len(cache.rows(block.shard)) for block in blocks_of(root))
    assert (job.state, job.done, job.total) == ("cancelled", stored, 90 * VIEWS)
    done = process(*long_cache(root))
    assert f"{VIEWS} views of 90 images, complete" in done.stdout


def test_the_first_signal_saves_the_step_at_hand_and_the_second_stops_at_once(long_run, tmp_path):
    run = tmp_path / "run"
    running = start(tmp_path, long_run(run, "--set", "run.checkpoint_every_s=1000.0"))
    metrics = run / "metrics.jsonl"
    wait_for(running, lambda: any(m["step"] >= 7 for m in read_metrics(metrics)))
    running.send_signal(signal.SIGTERM)
    _, error = running.communicate(timeout=900)
    assert running.returncode == 143, error
    assert load_checkpoint(run / "last.pt").step % 5 != 0 or "saved" in error
    running = start(tmp_path, long_run(run, "--set", "run.checkpoint_every_s=1000.0"))
    wait_for(running, lambda: any(m["step"] >= 14 for m in read_metrics(metrics)))
    running.send_signal(signal.SIGSTOP)  # both signals are there before the job can look
    running.send_signal(signal.SIGINT)
    running.send_signal(signal.SIGCONT)
    time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=900)
    assert running.returncode in (130, -signal.SIGINT)
