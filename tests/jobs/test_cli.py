"""What a user types, as processes of their own."""

import json
import os
import shutil
import subprocess
import sys
import tomllib

import httpx
import pytest
from PIL import Image
from repository import REPOSITORY
from serving import serving
from small import cache_document, newest_job, student_document, to_toml
from typer.main import get_command

from cli import app
from service.records.job_store import open_store
from teacher_cache.cache.blocks import missing_blocks
from teacher_cache.cache.cache import open_cache
from teacher_cache.storage.disk import Disk


@pytest.fixture
def recipes(tmp_path):
    """Write the two small recipes, with changes, and return their paths."""

    def write(**changes):
        cache, student = tmp_path / "cache.toml", tmp_path / "student.toml"
        cache.write_text(to_toml(cache_document()))
        student.write_text(to_toml(student_document(**changes)))
        return cache, student

    return write


def test_the_three_uses_from_images_to_an_exported_student_and_its_record(
    cli, recipes, scans, tmp_path
):
    cache_toml, student_toml = recipes()
    train, val = scans / "train", scans / "val"
    done = cli("cache-teacher", cache_toml, "--data", train, "--out", "cache", check=0)
    assert "cache cache: 3 views of 90 images, complete" in done.stdout
    done = cli(
        "train-student", student_toml, "--cache", "cache", "--data", train, "--val", val,
        "--out", "run", check=0,
    )  # fmt: skip
    assert "run run: model test_efficientnet" in done.stdout
    taught = "teacher: k = 2, tau 1, uniform; gradient cosine to the whole teacher: fresh "
    assert taught in done.stdout
    facts = json.loads(cli("inspect-cache", "cache", "--json", check=0).stdout)
    assert (facts["records"], facts["complete views"], facts["k"]) == (270, 3, 2)
    result = json.loads(cli("evaluate", "run", "--val", val, "--json", check=0).stdout)
    assert result["images"] == 30
    assert result["top1"] == result["folded_top1"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert result["top1"] == summary["ema_top1"]
    done = cli("export", "run", "--out", "student.safetensors", check=0)
    assert "logits agree to" in done.stdout
    plain = (
        "import timm, safetensors.torch as s; m = timm.create_model('test_efficientnet', "
        "num_classes=3); m.load_state_dict(s.load_file('student.safetensors')); print('opened')"
    )
    opened = subprocess.run(
        [sys.executable, "-c", plain], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert opened.stdout == "opened\n"
    with serving(tmp_path) as url:
        jobs = httpx.get(f"{url}/api/v1/jobs").json()["jobs"]
        assert [job["kind"] for job in jobs] == ["train-student", "cache-teacher"]
        one = httpx.get(f"{url}/api/v1/jobs/{jobs[0]['id']}").json()
        assert one["state"] == "succeeded"
        assert one["metrics"]["ema_top1"] == summary["ema_top1"]
        shown = {name: one["config"][name] for name in ("student.size", "views.size")}
        assert shown == {"student.size": 32, "views.size": 32}, "the cache's, not the default"
        assert one["config"]["views.count"] == 3
        assert one["progress"]["done"] == one["progress"]["total"] == 15
        assert httpx.get(f"{url}/livez").status_code == 200


def test_a_rerun_of_what_is_done_is_a_job_that_says_so(cli, recipes, scans, tmp_path):
    cache_toml, student_toml = recipes(schedule__epochs=1)
    data = ["--data", scans / "train"]
    caching = ["cache-teacher", cache_toml, *data, "--out", "cache"]
    training = [
        "train-student", student_toml, "--cache", "cache", *data, "--val", scans / "val",
        "--out", "run",
    ]  # fmt: skip
    for command, total, unit in ((caching, 270, "records"), (training, 5, "steps")):
        cli(*command)
        first = newest_job(tmp_path)
        assert (first.done, first.total, first.resumed, first.reason) == (total, total, 0, None)
        words = f"nothing to do: all {total} {unit} were done before"
        assert words in cli(*command).stderr
        again = newest_job(tmp_path)
        assert again.resumed_from == first.id != again.id
        assert (again.state, again.reason) == ("succeeded", words)
        assert (again.done, again.total, again.resumed) == (total, total, total)
        store = open_store(f"sqlite:///{tmp_path}/jobs.db")
        events = [event.text for event in store.events(again.id).events]
        assert events == ["pending", "running", f"succeeded: {words}"]


COMMANDS = (
    "cache-teacher", "train-student", "evaluate", "export", "models", "inspect-cache",
    "verify-cache", "audit-cache", "plan-cache", "bench-data", "compare-online", "run-study",
    "recipes", "serve", "demo", "jobs",
)  # fmt: skip


def every_command(group, names=()):
    """Each command and group of the command line, by the words that lead to it."""
    yield names, group
    for name, command in getattr(group, "commands", {}).items():
        yield from every_command(command, (*names, name))


EVERY = dict(every_command(get_command(app)))


@pytest.mark.parametrize("names", EVERY, ids=" ".join)
def test_every_help_fits_80_columns_whole_and_ends_with_a_line_that_works(cli, names, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = cli(*names, "--help", check=0).stdout
    assert max(map(len, text.splitlines())) <= 80
    for option in (each for parameter in EVERY[names].params for each in parameter.opts):
        assert not option.startswith("--") or option in text, "not cut"
    shown = text.rsplit("Example:", 1)[1].split()
    assert shown.pop(0) == "cli.py"
    command = EVERY[()]
    while shown and hasattr(command, "commands"):
        command = command.commands[shown.pop(0)]
    command.make_context("example", shown).close()


def test_every_command_is_listed_in_the_help(cli):
    text = cli("--help", check=0).stdout
    assert set(COMMANDS) <= set(text.split())


def test_the_version_is_that_of_the_package(cli):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert cli("--version", check=0).stdout == f"retort {project['version']}\n"


def test_the_shipped_recipes_are_listed_with_what_they_are(cli):
    text = cli("recipes", check=0).stdout
    found = json.loads(cli("recipes", "--json", check=0).stdout)
    folders = ("teacher_cache/recipes", "student/recipes", "student/studies")
    files = {file.stem for folder in folders for file in (REPOSITORY / folder).glob("*.toml")}
    assert {name for names in found.values() for name in names} == files
    for names in found.values():
        for name, about in names.items():
            assert f"  {name}\n" in text
            assert about.split(",")[0][:40] in " ".join(text.split())
            assert len(about) > 30
    assert max(map(len, text.splitlines())) <= 80


def test_a_wrong_option_is_usage_and_exits_2(cli):
    assert "No such option" in cli("cache-teacher", "--nope", check=2).stderr
    assert "Missing" in cli("train-student", "digits-student", check=2).stderr
    wrong_device = ["--data", "d", "--out", "o", "--device", "tpu"]
    assert "tpu" in cli("cache-teacher", "digits", *wrong_device, check=2).stderr


def caching(cli, recipes, data, *more, check=1, env=None):
    recipe, _ = recipes()
    return cli(
        "cache-teacher", recipe, "--data", data, "--out", "cache", *more, check=check, env=env
    ).stderr


def training(cli, recipes, data, *more, cache="cache", check=1, **changes):
    _, recipe = recipes(**changes)
    options = ["--cache", cache] if cache else []
    return cli(
        "train-student", recipe, *options, "--data", data / "train", "--val", data / "val",
        "--out", "run", *more, check=check,
    ).stderr  # fmt: skip


def test_bad_recipes_exit_2_and_name_the_key(cli, recipes, scans):
    words = caching(cli, recipes, scans / "train", "--set", "teacher.modle=resnet18", check=2)
    assert words.startswith("error: ")
    assert "teacher.modle: unknown key; did you mean 'model'?" in words
    missing = cli("cache-teacher", "x", "--data", "d", "--out", "o", check=2).stderr
    assert "give the path of a .toml file, or the name of one of the shipped recipes: " in missing


def test_bad_data_and_teachers_exit_1_with_one_line_and_make_nothing(cli, recipes, scans, tmp_path):
    (tmp_path / "empty").mkdir()
    for data, setting, words in (
        (tmp_path / "nowhere", "topk.k=2", "no such folder"),
        (tmp_path / "empty", "topk.k=2", "holds no class folders"),
        (scans / "train", "topk.k=4", "topk.k is 4, the teacher has 3 classes"),
        (scans / "train", "teacher.model=resnet5O", "is no timm model, and none of torchvision"),
        (scans / "train", "teacher.checkpoint=none.pt", "none.pt: no such file"),
    ):
        error = caching(cli, recipes, data, "--set", setting)
        assert error.startswith("error: ")
        assert words in error
        assert error.count("\n") == 1
        assert not (tmp_path / "cache").exists()


def test_pretrained_weights_that_cannot_be_fetched_say_what_to_do(
    process, recipes, scans, tmp_path
):
    error = caching(
        process, recipes, scans / "train", "--set", "teacher.pretrained=true",
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")},
    )  # fmt: skip
    assert "could not be built" in error
    assert "set teacher.pretrained = false" in error


def test_unreadable_and_odd_images(cli, recipes, own_scans, tmp_path):
    folder = own_scans / "train" / "digit-0"
    Image.new("CMYK", (30, 30)).save(folder / "cmyk.jpg")
    Image.new("I;16", (30, 30), 40_000).save(folder / "deep.png")
    Image.new("P", (30, 30)).save(folder / "palette.png")
    Image.new("L", (30, 30)).save(folder / "gray.jpg")
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.new("RGB", (20_000, 3)).save(folder / "wide.png")
    caching(cli, recipes, own_scans / "train", check=0)
    shutil.rmtree(tmp_path / "cache")
    for content, reason in ((b"", "zero|empty|0 bytes"), (b"<html>", "not an image")):
        (folder / "bad.jpg").write_bytes(content)
        error = caching(cli, recipes, own_scans / "train")
        assert "digit-0/bad.jpg: " in error
        assert any(word in error for word in reason.split("|")), error
        assert "images.skip_unreadable = true" in error
    caching(cli, recipes, own_scans / "train", "--set", "images.skip_unreadable=true", check=0)
    facts = json.loads(cli("inspect-cache", "cache", "--json", check=0).stdout)
    assert facts["absent images"] == ["digit-0/bad.jpg"]


def test_paths_that_cannot_be_written_are_named(cli, recipes, scans, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert "cache" in caching(cli, recipes, scans / "train")
    assert (tmp_path / "cache").read_text() == "a file"
    recipe, _ = recipes()
    error = cli(
        "cache-teacher", recipe, "--data", scans / "train", "--out", "/proc/nowhere/cache", check=1
    ).stderr
    assert "/proc/nowhere" in error


def test_a_full_disk_stops_the_job_and_a_rerun_continues(cli, recipes, scans, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        recipe, _ = recipes()
        command = ["cache-teacher", recipe, "--data", scans / "train", "--out", disk / "cache"]
        error = cli(*command, "--set", "views.count=12", check=1).stderr
        assert f"No space left on device: '{disk}/cache/" in error
        assert "nothing already done is lost" in error
        committed = len(open_cache(Disk(disk / "cache")).blocks()) - len(
            missing_blocks(open_cache(Disk(disk / "cache")))
        )
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        resumed = cli(*command, "--set", "views.count=12", check=0).stdout
        assert "12 views of 90 images, complete" in resumed
        assert 0 < committed < 36
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # a thread may still look


def test_replays_that_would_be_wrong_are_refused(cli, recipes, filled, scans, tmp_path):
    cache = filled.place.root
    assert "cache_there: no cache there" in training(cli, recipes, scans, cache="cache_there")
    assert "pass --cache" in training(cli, recipes, scans, cache=None)
    assert "epoch 3 asks for view 3" in training(
        cli, recipes, scans, "--set", "schedule.epochs=4", cache=cache
    )
    copy = shutil.copytree(cache, tmp_path / "other")
    attributes = json.loads((copy / "zarr.json").read_text())
    manifest = attributes["attributes"]["retort"]
    manifest["pixel_libraries"]["pillow"] = "1.0"
    from teacher_cache.recipes.document import digest_of

    attributes["attributes"]["retort_sha256"] = digest_of(manifest)
    (copy / "zarr.json").write_text(json.dumps(attributes))
    error = training(cli, recipes, scans, cache=copy)
    assert "pillow 1.0 in the cache, " in error
    assert "install the cache's versions, or fill a new cache" in error


def test_students_that_cannot_be_built_are_refused(cli, recipes, filled, scans):
    for setting, words in (
        ("student.model=resnet5O", "resnet50"),
        ("student.kwargs.nonsense=1", "nonsense"),
        ("reparam.select=['no_such_layer']", "no_such_layer"),
        ("optimizer.name=lambda", "lambda"),
    ):
        more = ["--set", setting]
        if "reparam" in setting:
            more += ["--set", "reparam.branches=2"]
        error = training(cli, recipes, scans, *more, cache=filled.place.root)
        assert error.splitlines()[-1].startswith("error: ")
        assert words in error


@pytest.mark.parametrize(
    "url", ["sqlite:////proc/nowhere/jobs.db", "postgresql://nobody@127.0.0.1:1/none", "gopher:x"]
)
def test_a_failing_record_never_stops_a_job(cli, recipes, scans, url):
    error = caching(cli, recipes, scans / "train", check=0, env={"RETORT_DB": url})
    assert "cache-teacher 100%" in error


def test_a_path_that_no_terminal_can_show_is_spelt_out(cli, recipes, scans, tmp_path):
    """Its bytes are no UTF-8, or are an escape: the job is done all the same, and says so."""
    cache, student = recipes(schedule__epochs=1)
    folder = tmp_path / os.fsdecode(b"\xff\x1b[31m")
    folder.mkdir()
    data = ("--data", scans / "train")
    shown = cli("cache-teacher", cache, *data, "--out", folder / "cache").stdout
    assert "\\udcff\\x1b[31m/cache: 3 views of 90 images, complete" in shown
    run = ("--val", scans / "val", "--cache", folder / "cache", "--out", folder / "run")
    shown = cli("train-student", student, *data, *run).stdout
    assert "\\udcff\\x1b[31m/run: model" in shown
    shown = cli("export", folder / "run", "--out", folder / "student.safetensors").stdout
    assert "\\udcff\\x1b[31m/student" in shown


def test_nothing_is_written_where_it_would_count_as_a_class_folder(
    cli, recipes, filled, own_scans, tmp_path
):
    cache, student = recipes()
    data, val = own_scans / "train", own_scans / "val"
    words = "would count as a class folder from then on: choose an --out outside it"
    for out in (data / "new", data / "new" / "cache"):
        command = ("cache-teacher", cache, "--data", data, "--out", out)
        assert words in cli(*command, check=1).stderr
    (tmp_path / "link").symlink_to(data)
    for out in (data / "run", val / "run", tmp_path / "link" / "run"):
        options = ("--data", data, "--val", val, "--cache", filled.place.root, "--out", out)
        assert words in cli("train-student", student, *options, check=1).stderr
    assert sorted(path.name for path in [*data.iterdir(), *val.iterdir()]) == sorted(
        2 * [f"digit-{label}" for label in range(3)]
    )
    cli("cache-teacher", cache, "--data", data, "--out", data / ".cache")
    cli("cache-teacher", cache, "--data", data, "--out", data / ".cache")
