"""Defaults of options: flag, then environment, then retort.toml, then what is built in."""

import pytest
from typer.main import get_command

from cli import app
from service.console.project_file import ProjectFileError, project_defaults


def asked(cli, *arguments, env=None):
    """Which service `jobs ls` asks; nothing listens at any of these ports."""
    error = cli("jobs", "ls", *arguments, check=1, env=env).stderr
    return error.removeprefix("error: ").split(" does not answer")[0]


def test_flag_before_environment_before_project_file_before_default(cli, tmp_path):
    assert cli("jobs", "ls").stdout.startswith("no jobs in the database /"), (
        "built in: the records, no service"
    )
    (tmp_path / "retort.toml").write_text('[jobs]\nurl = "http://127.0.0.1:1"\n')
    assert asked(cli) == "http://127.0.0.1:1"
    environment = {"RETORT_URL": "http://127.0.0.1:2"}
    assert asked(cli, env=environment) == "http://127.0.0.1:2"
    assert asked(cli, "--url", "http://127.0.0.1:3", env=environment) == "http://127.0.0.1:3"


def test_the_environment_says_where_to_compute_unless_a_flag_does(cli, scans):
    plan = ("plan-cache", "digits", "--data", scans / "train")
    wrong = cli(*plan, check=2, env={"RETORT_DEVICE": "tpu"}).stderr
    assert "tpu" in wrong
    assert "RETORT_DEVICE" in wrong
    checkpoint = ("--set", "teacher.checkpoint=/nowhere.safetensors")  # found out after the device
    flag = cli(*plan, "--device", "cpu", *checkpoint, check=1, env={"RETORT_DEVICE": "tpu"}).stderr
    assert "/nowhere.safetensors" in flag


def test_the_nearest_table_counts_and_lists_and_switches_are_taken(tmp_path):
    file = tmp_path / "retort.toml"
    file.write_text(
        'device = "cpu"\nurl = "http://a"\n[train-student]\ndevice = "cuda"\nfollow = true\n'
        'set = ["optimizer.lr=0.01"]\n[jobs]\nurl = "http://b"\n[jobs.watch]\nurl = "http://c"\n'
    )
    found = project_defaults(file, get_command(app))
    assert found["cache-teacher"] == {"device": "cpu"}
    assert found["train-student"] == {
        "device": "cuda",
        "follow": True,
        "overrides": ["optimizer.lr=0.01"],
    }
    assert found["jobs"]["ls"] == {"url": "http://b"}
    assert found["jobs"]["watch"] == {"url": "http://c"}
    assert found["inspect-cache"] == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("devise = 'cpu'", "got 'devise', expected the name of a command, or of one of its"),
        ("[train-student]\nport = 1", "got 'train-student.port'"),
        ("[jobs.ls]\ncrashed-s = 1.0", "got 'jobs.ls.crashed-s'"),
        ("[train]\nfollow = true", "got 'train'"),
        ("[serve\n", "expected TOML"),
    ],
)
def test_a_project_file_that_says_what_no_command_has_is_refused(cli, tmp_path, text, words):
    (tmp_path / "retort.toml").write_text(text)
    error = cli("jobs", "ls", check=2).stderr
    assert words in error
    assert error.startswith("error: retort.toml: ")
    with pytest.raises(ProjectFileError):
        project_defaults(tmp_path / "retort.toml", get_command(app))


def test_a_value_of_the_wrong_type_is_named(cli, tmp_path):
    (tmp_path / "retort.toml").write_text('[serve]\nport = "many"\n')
    assert "'--port'" in cli("serve", check=2).stderr


def test_without_a_project_file_nothing_changes(tmp_path):
    assert project_defaults(tmp_path / "retort.toml", get_command(app)) == {}
