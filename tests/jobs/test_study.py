"""`cli.py run-study`: run whole, killed and continued, by two processes and by two ranks."""

import json
import signal
import subprocess
import sys
import time

import pytest
from commands import CLI, cli_environment, start
from small import cache_document, student_document, to_toml

from service.records.job_store import open_store
from student.runs.checkpoint import load_checkpoint
from student.runs.metrics import read_metrics

ROWS = {"alone": ["distill.alpha=0"], "distilled": [], "k = 1": ["topk.k=1"]}
SEEDS = 2


@pytest.fixture
def study(tmp_path, scans):
    """The arguments of a study of three rows, two seeds and a teacher of its own, by its --out."""
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "cache.toml").write_text(to_toml(cache_document(teacher__allow_poor=True)))
    (folder / "student.toml").write_text(to_toml(student_document(schedule__epochs=12)))
    teacher = {"student__model": "test_resnet", "views__size": 32, "schedule__epochs": 4}
    (folder / "teacher.toml").write_text(to_toml(student_document(distill__alpha=0.0, **teacher)))
    rows = "".join(
        f'[[rows]]\nname = "{name}"\nset = {json.dumps(changes)}\nclaim = "higher"\n'
        for name, changes in ROWS.items()
    )
    (folder / "small.toml").write_text(
        f'title = "a small study"\ncache = "cache.toml"\nstudent = "student.toml"\n'
        f'teacher = "own"\nseeds = {SEEDS}\n[teachers.own]\nstudent = "teacher.toml"\n{rows}'
    )
    data = ("--data", scans / "train", "--val", scans / "val")
    return lambda out, *more: ("run-study", folder / "small.toml", *data, "--out", out, *more)


def runs_of(out):
    return sorted(file.parent for file in (out / "runs").rglob("run.json"))


def in_training(out):
    """The runs that have logged their first step, and not ended."""
    unfinished = [run for run in runs_of(out) if not (run / "summary.json").exists()]
    return [run for run in unfinished if read_metrics(run / "metrics.jsonl")]


def weights_of(out):
    return {
        str(run.relative_to(out)): {
            name: tensor.numpy().tobytes()
            for name, tensor in load_checkpoint(run / "last.pt").model.items()
        }
        for run in runs_of(out)
    }


def results_of(out):
    return json.loads((out / "results.json").read_text())


def jobs_of(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/jobs.db")
    return [job.record for job in store.list(limit=100).jobs]


def wait_until(process, happened):
    deadline = time.monotonic() + 900
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_dry_run_lists_every_job_with_its_hours_and_runs_none(cli, study, tmp_path):
    done = cli(*study(tmp_path / "out", "--dry-run", "--json"))
    lines = json.loads(done.stdout)
    kinds = [line["kind"] for line in lines]
    assert kinds == ["teacher", *["cache"] * 2, *["run"] * len(ROWS) * SEEDS]
    assert all(line["hours"] > 0 for line in lines)
    assert [line["images"] for line in lines] == [360, 1080, 1080, *[960] * 6]
    assert not (tmp_path / "out").exists()
    assert "in all" in cli(*study(tmp_path / "out", "--dry-run")).stdout


@pytest.mark.slow
def test_a_study_that_was_killed_ends_with_the_results_of_an_unbroken_one(
    cli, process, study, tmp_path
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    table = process(*study(whole)).stdout
    assert "| distilled | " in table
    assert " 95% interval " in table
    running = start(tmp_path, study(killed))
    wait_until(running, lambda: (killed / "teachers" / "own" / "metrics.jsonl").exists())
    running.send_signal(signal.SIGKILL)
    running.communicate()
    for runs in (1, 3):
        running = start(tmp_path, study(killed))
        wait_until(
            running,
            lambda most=runs: (
                len(found := runs_of(killed)) > most and read_metrics(found[-1] / "metrics.jsonl")
            ),
        )
        running.send_signal(signal.SIGKILL)
        running.communicate()
    running = start(tmp_path, study(killed))
    wait_until(running, lambda: len(runs_of(killed)) > 4 and in_training(killed))
    running.send_signal(signal.SIGTERM)
    running.communicate()
    assert running.returncode == 128 + signal.SIGTERM
    assert process(*study(killed)).stdout == table
    assert results_of(killed) == results_of(whole)
    assert weights_of(killed) == weights_of(whole)
    stamps = {file: file.stat().st_mtime_ns for file in killed.rglob("*") if file.is_file()}
    again = cli(*study(killed), "--json")
    assert json.loads(again.stdout) == results_of(killed)  # nothing else is on stdout
    changed = {file for file in stamps if file.stat().st_mtime_ns != stamps[file]}
    assert {file.name for file in changed} <= {"results.json", "results.png"}


@pytest.mark.slow
def test_two_processes_share_a_study_and_train_each_run_once(process, study, tmp_path):
    out = tmp_path / "out"
    both = [start(tmp_path, study(out)) for _ in range(2)]
    said = [running.communicate(timeout=900) for running in both]
    assert [running.returncode for running in both] == [0, 0], said
    assert len(runs_of(out)) == len(ROWS) * SEEDS
    last = process(*study(out), "--json").stdout
    assert all(len(row["top1"]) == SEEDS for row in json.loads(last)["rows"])
    jobs = [job for job in jobs_of(tmp_path) if job.kind == "train-student"]
    assert len(jobs) >= len(ROWS) * SEEDS + 1  # and the teacher
    assert {job.state for job in jobs} == {"succeeded"}  # none failed at the other's lock


@pytest.mark.slow
def test_two_ranks_run_a_study_together(study, tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        CLI, *map(str, study(tmp_path / "out", "--seeds", "1")),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env=cli_environment(tmp_path), capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for run in runs_of(tmp_path / "out"):
        assert json.loads((run / "summary.json").read_text())["ranks"] == 2
    assert all(len(row["top1"]) == 1 for row in results_of(tmp_path / "out")["rows"])


@pytest.mark.slow
def test_a_row_that_fails_leaves_the_others_and_says_why(process, study, tmp_path):
    out = tmp_path / "out"
    study_file = study(out)[1]
    text = study_file.read_text()
    bad = '[[rows]]\nname = "bad"\nset = ["optimizer.lr=1e30", "distill.alpha=0"]\n'
    study_file.write_text(text + bad)
    done = process(*study(out), "--seeds", "1", "--json", check=1)
    results = json.loads(done.stdout)
    (failed,) = results["failed"]
    assert (failed["row"], failed["seed"]) == ("bad", 0)
    assert [len(row["top1"]) for row in results["rows"]] == [1, 1, 1, 0]
    study_file.write_text(text.replace("distill.alpha=0", "distill.alpha=0.25"))
    refused = process(*study(out), "--seeds", "1", check=1).stderr
    assert "was trained with other settings than row 'alone' has now" in refused
