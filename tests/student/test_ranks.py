"""Several processes that train one run: real ones, started by torchrun."""

import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from commands import cli_environment
from repository import REPOSITORY
from small import CPU, student_document, to_toml

from student.data.training_data import replayed_data
from student.ranks import ALONE, Ranks, RanksError, joined
from student.recipe import StudentRecipe
from student.runs.checkpoint import load_checkpoint
from student.runs.metrics import read_metrics
from student.training.start import start_or_continue
from student.training.train import train
from teacher_cache.images.index import index_images, rebase
from teacher_cache.recipes.document import parse_recipe


@pytest.mark.parametrize(("rows", "count"), [(16, 1), (16, 2), (24, 3), (7, 7)])
def test_the_shares_of_the_ranks_are_the_batch_in_order(rows, count):
    batch = np.random.default_rng(0).permutation(rows)
    shares = [Ranks(number, count).share(batch) for number in range(count)]
    assert len({len(share) for share in shares}) == 1
    np.testing.assert_array_equal(np.concatenate(shares), batch)


def test_the_micro_batches_of_all_ranks_are_those_of_one_process():
    def passes(count):
        found = []
        for number in range(count):
            ranks = Ranks(number, count)
            size = ranks.micro_batch(batch_size=24, micro_batch=4)
            own = ranks.share(np.arange(24))
            found += [own[at : at + size].tolist() for at in range(0, len(own), size)]
        return found

    assert passes(1) == passes(2) == passes(3) == passes(6)
    assert Ranks(0, 4).micro_batch(batch_size=24, micro_batch=None) == 6
    assert ALONE.micro_batch(batch_size=24, micro_batch=None) == 24


@pytest.mark.parametrize(
    ("micro_batch", "words"),
    [
        (None, r"batch_size = 16 cannot be shared by 3 ranks, expected a multiple of 3"),
        (8, r"shared by 3 ranks in micro-batches of 8, expected a multiple of 24"),
    ],
)
def test_a_batch_that_ranks_cannot_share_is_refused(micro_batch, words):
    with pytest.raises(RanksError, match=words):
        Ranks(0, 3).micro_batch(batch_size=16, micro_batch=micro_batch)


def test_without_torchrun_a_process_is_alone_and_half_of_torchrun_is_refused():
    with joined(CPU, {}) as ranks:
        assert ranks == ALONE
    with joined(CPU, {"WORLD_SIZE": "1", "RANK": "0"}) as ranks:
        assert ranks == ALONE
    half = {"WORLD_SIZE": "2", "RANK": "0"}
    with (
        pytest.raises(RanksError, match=r"LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set.*torchrun"),
        joined(CPU, half),
    ):
        pass


RANK = """
import sys
import torch
from student.ranks import joined
try:
    with joined(torch.device("cpu")) as ranks:
        ranks.agree()
        if ranks.number == 0:
            raise ValueError("an image is broken")
        ranks.agree()
except Exception as error:
    print(type(error).__name__, flush=True)
    sys.stdin.readline()
"""


def test_a_rank_that_fails_lets_all_others_know_though_it_and_they_live_on():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=REPOSITORY,
            env=os.environ | {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "3",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(3)
    ]  # fmt: skip
    try:
        for rank, expected in zip(ranks, ("ValueError", "RankLost", "RankLost"), strict=True):
            assert select.select([rank.stdout], [], [], 60)[0], "it still waits"
            assert rank.stdout.readline().strip() == expected
        assert [rank.poll() for rank in ranks] == [None] * 3
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


@pytest.fixture
def torchrun(tmp_path, scans, filled):
    """Start ranks that train a small student on the filled cache into `tmp_path / out`."""

    def start(out, count=2, max_restarts=0, **changes):
        recipe = tmp_path / f"{out}.toml"
        recipe.write_text(to_toml(student_document(**changes)))
        return subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc-per-node", str(count), "--max-restarts", str(max_restarts),
                REPOSITORY / "cli.py", "train-student", recipe,
                "--cache", filled.place.root, "--data", scans / "train", "--val", scans / "val",
                "--out", tmp_path / out, "--device", "cpu",
            ],
            cwd=tmp_path, env=cli_environment(tmp_path), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    return start


def ended(process, code=0):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == code, output
    return output


def alone(out, scans, cache, steps=None, **changes):
    """The same run in this process, or its first steps."""
    recipe = parse_recipe(student_document(**changes), StudentRecipe, source="test")
    data = replayed_data(recipe, rebase(cache.index, scans / "train"), cache)
    validation = index_images(scans / "val", class_ids=data.index.class_ids)
    run = start_or_continue(out, recipe, data, validation)
    job = train(run, data, validation, device=CPU)
    for _ in itertools.islice(job, None if steps is None else steps + 1):
        pass
    job.close()
    return run


def largest_difference(one, other):
    a, b = load_checkpoint(one), load_checkpoint(other)
    assert a.step == b.step
    return max(
        float((state[name].double() - same[name].double()).abs().max())
        for state, same in ((a.model, b.model), (a.ema, b.ema))
        for name in state
    )


def same_bytes(one, other):
    a, b = load_checkpoint(one), load_checkpoint(other)
    return all(
        torch.equal(state[name], same[name])
        for state, same in ((a.model, b.model), (a.ema, b.ema))
        for name in state
    )


def test_two_ranks_train_the_run_of_one_process(torchrun, scans, filled, tmp_path):
    """A network whose images do not meet: the global batch's mean gradient is the same."""
    changes = {"student__model": "test_vit", "optimizer__micro_batch": 4}
    process = torchrun("two", **changes)
    one = alone(tmp_path / "one", scans, filled, **changes)
    output = ended(process)
    assert output.count("run ") == 1  # the first rank speaks
    two = tmp_path / "two"
    assert largest_difference(one.last, two / "last.pt") < 1e-5
    lines = zip(read_metrics(one.metrics), read_metrics(two / "metrics.jsonl"), strict=True)
    for expected, line in lines:
        figures = {"step", "loss", "ce", "kd", "lr", "top1", "ema_top1"} & expected.keys()
        same = pytest.approx({n: expected[n] for n in figures}, rel=1e-4, abs=1e-6)
        assert {n: line[n] for n in figures} == same
    assert any("ranks_share" in line for line in read_metrics(two / "metrics.jsonl"))
    assert json.loads((two / "summary.json").read_text())["ranks"] == 2


def steps_of(run):
    """The steps of losses and accuracies; an epoch's shares of time may be lost with a process."""
    lines = read_metrics(run / "metrics.jsonl")
    return [line["step"] for line in lines if "loss" in line or "top1" in line]


def wait_for_step(process, run, step):
    deadline = time.monotonic() + 900
    while max(steps_of(run), default=0) < step:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children_of(process):
    listed = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
    )  # it fails where there are none
    return [int(pid) for pid in listed.stdout.split()]


@pytest.mark.kill
@pytest.mark.slow
def test_ranks_that_were_stopped_and_killed_end_with_the_bytes_of_unbroken_ones(
    torchrun, scans, filled, tmp_path
):
    """With BatchNorm, micro-batches and loader processes; then the rest by one process."""
    changes = {
        "schedule__epochs": 12, "views__reuse": True, "student__size": 64,
        "optimizer__micro_batch": 4, "loader__workers": 1, "run__checkpoint_every_s": 0.3,
    }  # fmt: skip
    ended(torchrun("unbroken", **changes))
    broken = tmp_path / "broken"
    process = torchrun("broken", **changes)
    wait_for_step(process, broken, 12)
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM; saved: the same command continues" in ended(process, 1)
    stopped = load_checkpoint(broken / "last.pt").step
    assert 12 <= stopped < 60
    process = torchrun("broken", **changes)
    wait_for_step(process, broken, stopped + 8)
    os.kill(children_of(process)[-1], signal.SIGKILL)
    assert "another rank of this run has ended or does not answer" in ended(process, 1)
    assert load_checkpoint(broken / "last.pt").step < 60
    ended(torchrun("broken", **changes))
    assert steps_of(broken) == steps_of(tmp_path / "unbroken")
    assert same_bytes(broken / "last.pt", tmp_path / "unbroken" / "last.pt")


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(torchrun, scans, filled, tmp_path):
    changes = {"student__model": "test_vit"}
    alone(tmp_path / "run", scans, filled, steps=7, **changes)
    ended(torchrun("run", **changes))
    whole = alone(tmp_path / "whole", scans, filled, **changes)
    assert largest_difference(tmp_path / "run" / "last.pt", whole.last) < 1e-5


@pytest.mark.slow
def test_a_run_that_is_held_and_a_batch_that_cannot_be_shared_end_all_ranks(
    torchrun, scans, filled, tmp_path
):
    output = ended(torchrun("uneven", 3), 1)
    assert "cannot be shared by 3 ranks" in output
    recipe = parse_recipe(student_document(), StudentRecipe, source="test")
    data = replayed_data(recipe, rebase(filled.index, scans / "train"), filled)
    validation = index_images(scans / "val", class_ids=data.index.class_ids)
    run = start_or_continue(tmp_path / "held", recipe, data, validation)
    job = train(run, data, validation, device=CPU)
    next(job)
    output = ended(torchrun("held"), 1)
    job.close()
    assert "is being trained by another process" in output
    assert output.count("error: ") == 2
    assert "Traceback" not in output.partition("torch.distributed.elastic")[0].partition("E1")[0]


@pytest.mark.kill
@pytest.mark.slow
def test_ranks_that_are_killed_are_started_again_and_end_with_the_bytes_of_unbroken_ones(
    torchrun, tmp_path
):
    """Ten kills, of any rank: before the ranks have met, while they meet, and in training."""
    changes = {
        "schedule__epochs": 40, "views__reuse": True, "optimizer__micro_batch": 4,
        "run__checkpoint_every_s": 0.3,
    }  # fmt: skip
    ended(torchrun("unbroken", **changes))
    kills = 0
    for number, steps in enumerate([(0, 40, 0), (5, 0, 120), (0, 0, 80), (190,)]):
        name = f"killed-{number}"
        process = torchrun(name, max_restarts=3, **changes)
        killed: list[int] = []
        for step in steps:
            if step:
                wait_for_step(process, tmp_path / name, step)
            else:
                time.sleep(0.5 * number)  # some moment of the start, another one each time
            killed.append(kill_one(process, not_of=killed, number=kills))
            kills += 1
        ended(process)
        assert same_bytes(tmp_path / name / "last.pt", tmp_path / "unbroken" / "last.pt")
    assert kills == 10


def kill_one(process, *, not_of, number):
    """SIGKILL one of torchrun's ranks, of those that it has started since the last kill."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        ranks = [pid for pid in children_of(process) if pid not in not_of]
        try:
            if ranks:
                os.kill(ranks[number % len(ranks)], signal.SIGKILL)
                return ranks[number % len(ranks)]
        except ProcessLookupError:
            pass
        time.sleep(0.02)
    raise AssertionError("torchrun started no rank")
