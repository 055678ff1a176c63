"""What people type, and how commands are started: paths, streams, too long messages."""

import json
import os
import subprocess

import pytest
from commands import cli_environment, command
from packing import write_tar
from small import cache_document, newest_job, student_document, to_toml

from teacher_cache.storage.disk import Disk
from teacher_cache.storage.location import locate


@pytest.fixture
def recipes(tmp_path):
    (tmp_path / "cache.toml").write_text(to_toml(cache_document()))
    (tmp_path / "student.toml").write_text(to_toml(student_document()))
    return tmp_path / "cache.toml", tmp_path / "student.toml"


def test_a_tilde_is_the_home_folder_wherever_a_path_is_typed(
    cli, recipes, scans, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "train").symlink_to(scans / "train")
    cli("cache-teacher", recipes[0], "--data", "~/train", "--out", "~/cache")
    assert (tmp_path / "home" / "cache" / "zarr.json").is_file()
    cli(
        "train-student", recipes[1], "--cache", "~/cache", "--data", "~/train",
        "--val", scans / "val", "--out", "~/run",
    )  # fmt: skip
    cli("export", "~/run", "--out", "~/student.safetensors")
    assert (tmp_path / "home" / "student.safetensors.md").is_file()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("place", ["s3:/bucket/cache", "", "gs:/x", "~no-such-user/cache"])
def test_what_is_no_path_and_no_url_is_refused_before_any_work(
    cli, recipes, scans, tmp_path, place
):
    before = {*tmp_path.iterdir(), tmp_path / "jobs.db"}  # which says that they failed
    for command_line in (
        ("cache-teacher", recipes[0], "--data", scans / "train", "--out", place),
        ("cache-teacher", recipes[0], "--data", place, "--out", "cache"),
        ("train-student", recipes[1], "--data", scans / "train", "--val", place, "--out", "run",
         "--set", "distill.alpha=0"),
        ("train-student", recipes[1], "--data", scans / "train", "--val", scans / "val", "--out",
         place, "--set", "distill.alpha=0"),
        ("evaluate", place, "--val", scans / "val"),
        ("inspect-cache", place),
    ):  # fmt: skip
        error = cli(*command_line, check=2).stderr
        assert error.startswith("error: got "), command_line
        assert "expected " in error
    made = {path for path in tmp_path.iterdir() if not path.name.startswith("jobs.db-")}
    assert made | {tmp_path / "jobs.db"} == before
    assert locate("./s3:/bucket") == Disk(type(tmp_path)("s3:/bucket"))


def test_a_run_and_images_lie_in_folders_not_at_urls(cli, recipes, scans):
    for data, out in ((scans / "train", "s3://b/run"), ("s3://b/train", "run")):
        error = cli(
            "train-student", recipes[1], "--data", data, "--val", scans / "val", "--out", out,
            "--set", "distill.alpha=0", check=2,
        ).stderr  # fmt: skip
        assert "expected a path on this machine: only a cache may lie at a URL" in error


def closed(tmp_path, streams, *arguments):
    """Run `cli.py` with some of its standard streams closed, as `2>&-` does."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {streams}', "sh", *command(*arguments)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
        cwd=tmp_path, env=cli_environment(tmp_path), timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "streams",
    [
        "<&- >&- 2>&-",
        "2>&-",
        "2>/dev/full",
    ],
)
@pytest.mark.slow
def test_a_job_needs_nobody_who_reads_it(tmp_path, recipes, scans, streams):
    done = closed(
        tmp_path, streams, "cache-teacher", recipes[0], "--data", scans / "train", "--out", "cache"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert newest_job(tmp_path).state == "succeeded"
    # the job database was not opened as the stream that messages go to
    assert b"records" not in (tmp_path / "jobs.db").read_bytes()[:100]


def test_an_error_goes_nowhere_where_stderr_is_closed_and_not_into_the_output(tmp_path):
    done = closed(tmp_path, "2>&-", "inspect-cache", "nowhere")
    assert (done.returncode, done.stdout) == (1, "")


def test_an_error_without_words_is_called_by_its_kind(cli, recipes, monkeypatch):
    def refuse(*_arguments, **_options):
        raise TimeoutError

    monkeypatch.setattr(os, "scandir", refuse)  # a system call that fails without a reason
    assert "TimeoutError" in cli("plan-cache", recipes[0], "--data", ".", check=1).stderr


def test_a_message_is_bounded_whatever_a_file_holds(cli, recipes, tmp_path):
    names = [f"{'x' * 90}.{number}.{'y' * 90}.jpg" for number in range(700)]
    write_tar(tmp_path / "a.tar", *((name, b"") for name in names))
    error = cli("plan-cache", recipes[0], "--data", "wds/a.tar", check=1).stderr
    assert len(error) < 3200
    assert error.rstrip().endswith("a sample's name ends at its first dot: rename names with dots")
    (tmp_path / "map.json").write_text(json.dumps({f"class-{n}": n for n in range(3)}))
    long = cli(
        "plan-cache", recipes[0], "--data", "/" + "z" * 5000, "--set", "images.class_map=map.json",
        check=1,
    ).stderr  # fmt: skip
    assert len(long) < 3200
    assert "characters) ... " in long


def test_files_written_on_windows_begin_with_a_byte_order_mark(cli, recipes, scans, tmp_path):
    ids = {"digit-0": 0, "digit-1": 1, "digit-2": 2}
    (tmp_path / "map.json").write_text(json.dumps(ids), encoding="utf-8-sig")
    recipes[0].write_text(recipes[0].read_text(), encoding="utf-8-sig")
    done = cli(
        "plan-cache",
        recipes[0],
        "--data",
        scans / "train",
        "--json",
        "--set",
        "images.class_map=map.json",
    )
    assert json.loads(done.stdout)["images"] == 90
