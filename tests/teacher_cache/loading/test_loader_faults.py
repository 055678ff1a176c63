"""Real jobs whose loader meets trouble: killed workers, no shared memory, a disk that hangs."""

import os
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
from commands import cli_environment, command, sigkill
from commands import start as start_command
from slow_file import SlowFile
from small import CPU, cache_document, student_document, to_toml

from student.data.training_data import replayed_data
from student.recipe import StudentRecipe
from student.runs.checkpoint import load_checkpoint
from student.runs.metrics import read_metrics
from student.training.start import start_or_continue
from student.training.train import train
from teacher_cache.cache.blocks import committed_blocks
from teacher_cache.images.index import index_images, rebase
from teacher_cache.recipes.document import parse_recipe
from teacher_cache.storage.disk import Disk

pytestmark = pytest.mark.kill


DOCUMENT = student_document(
    schedule__epochs=6, views__reuse=True, student__size=48, loader__workers=2,
    run__log_every_steps=1,
)  # fmt: skip


@pytest.fixture
def run_command(tmp_path, scans, filled):
    """`train-student` with two workers on scans of one's choice, 6 epochs of 5 steps."""
    recipe = tmp_path / "student.toml"
    recipe.write_text(to_toml(DOCUMENT))

    def arguments(out, data=scans):
        return [
            "train-student", recipe, "--cache", filled.place.root, "--data", data / "train",
            "--val", scans / "val", "--out", out,
        ]  # fmt: skip

    return arguments


@pytest.fixture(scope="module")
def unbroken(scans, filled, tmp_path_factory):
    """Weights of the same run that nothing disturbs."""
    recipe = parse_recipe(DOCUMENT, StudentRecipe, source="test")
    data = replayed_data(recipe, rebase(filled.index, scans / "train"), filled)
    validation = index_images(scans / "val", class_ids=data.index.class_ids)
    run = start_or_continue(tmp_path_factory.mktemp("run") / "unbroken", recipe, data, validation)
    for _ in train(run, data, validation, device=CPU):
        pass
    return weights_of(run.folder)


start = partial(start_command, start_new_session=True)


def wait_for(condition, process=None, timeout_s=900.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers_of(process):
    """Ids of its children that hold the loader's memory."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if "memfd:retort-loader" in maps_of(child)]


def maps_of(pid):
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def steps_of(run):
    return [m["step"] for m in read_metrics(run / "metrics.jsonl") if "loss" in m]


def weights_of(run):
    saved = load_checkpoint(run / "last.pt")
    return [t.numpy().tobytes() for part in (saved.model, saved.ema) for t in part.values()]


@pytest.mark.slow
def test_a_run_whose_worker_is_killed_says_so_and_continues_to_the_same_bytes(
    process, run_command, unbroken, tmp_path
):
    run = tmp_path / "run"
    running = start(tmp_path, run_command(run))
    wait_for(lambda: (run / "last.pt").exists() and max(steps_of(run)) > 6, running)
    workers = workers_of(running)
    assert len(workers) == 2
    assert "/dev/shm" not in maps_of(workers[0])
    os.kill(workers[0], signal.SIGKILL)
    _, error = running.communicate(timeout=900)
    assert running.returncode == 1, error
    assert f"(process {workers[0]}) was killed by SIGKILL" in error
    assert "the same command continues from it" in error
    assert "Traceback" not in error
    assert not any(map(is_running, workers))
    assert load_checkpoint(run / "last.pt").step % 5 == 0
    process(*run_command(run))
    assert weights_of(run) == unbroken


@pytest.mark.slow
def test_a_fill_whose_worker_is_killed_keeps_its_blocks_and_continues(process, scans, tmp_path):
    recipe, root = tmp_path / "cache.toml", tmp_path / "cache"
    recipe.write_text(to_toml(cache_document(views__count=24, views__size=96, loader__workers=1)))
    arguments = ["cache-teacher", recipe, "--data", scans / "train", "--out", root]
    running = start(tmp_path, arguments)
    wait_for(lambda: len(committed_blocks(Disk(root))) >= 4, running)
    os.kill(workers_of(running)[0], signal.SIGKILL)
    _, error = running.communicate(timeout=900)
    assert running.returncode == 1, error
    assert "loader worker 0 of 1" in error
    assert "Traceback" not in error
    assert 4 <= len(committed_blocks(Disk(root))) < 72
    assert "24 views of 90 images, complete" in process(*arguments).stdout


@pytest.mark.slow
def test_a_machine_without_room_in_dev_shm_trains_to_the_same_bytes(
    run_command, unbroken, tmp_path
):
    small = (
        "unshare", "--mount", "sh", "-c",
        'mount -t tmpfs -o size=4k tmpfs /dev/shm && exec "$@"', "sh",
    )  # fmt: skip
    if shutil.which("unshare") is None or subprocess.run([*small, "true"], check=False).returncode:
        pytest.skip("mounting a small /dev/shm takes root")
    running = subprocess.Popen(
        [*small, *command(*run_command("run"))],
        cwd=tmp_path,
        env=cli_environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _, error = running.communicate(timeout=900)
    assert running.returncode == 0, error
    assert weights_of(tmp_path / "run") == unbroken


@pytest.fixture
def hanging(own_scans):
    """Scans on a disk that never gives one of them."""
    file = SlowFile(min((own_scans / "train").rglob("*.png")))
    yield own_scans
    file.close()


def test_workers_end_with_a_killed_parent_even_while_the_disk_hangs(run_command, hanging, tmp_path):
    running = start(tmp_path, run_command("run", hanging))
    wait_for(lambda: len(workers_of(running)) == 2, running)
    workers = workers_of(running)
    time.sleep(0.5)
    sigkill(running)
    wait_for(lambda: not any(map(is_running, workers)), timeout_s=900)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_to_all_processes_is_answered_while_the_disk_hangs(
    run_command, hanging, tmp_path, number, code
):
    run = tmp_path / "run"
    running = start(tmp_path, run_command(run, hanging))
    wait_for(lambda: len(workers_of(running)) == 2, running)
    workers = workers_of(running)
    time.sleep(2)  # a few steps, perhaps, up to the one that needs the image
    os.killpg(running.pid, number)
    _, error = running.communicate(timeout=900)
    assert running.returncode == code, error
    assert "saved: the same command continues" in error
    assert "Traceback" not in error
    assert not any(map(is_running, workers))
    assert load_checkpoint(run / "last.pt").step < 5  # the first epoch needs the image
