"""The README's commands: all of them parse, and those on digits run word for word."""

import json
import re
import shlex

import httpx
import pytest
import timm
from repository import REPOSITORY
from safetensors.torch import load_file
from serving import serving
from typer.main import get_command

from cli import app
from student.demo import write_digits

README = (REPOSITORY / "README.md").read_text()
TEACHERS = (REPOSITORY / "docs" / "teachers.md").read_text()


def blocks(page=README):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, flags=re.M | re.S)
    return [block for language, block in found if not language]


def parsed(block):
    """The arguments of every `cli.py ...` line of a code block."""
    lines = [line.removeprefix("$ ") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("cli.py ")]


def commands():
    return [arguments for block in blocks() for arguments in parsed(block)]


def digits_commands():
    """Those of the block that works on `digits/`, without the one that never ends."""
    block = max(blocks(), key=lambda block: len(parsed(block)))
    return [arguments for arguments in parsed(block) if arguments[0] != "serve"]


def test_every_command_of_the_readme_parses():
    group = get_command(app)
    assert len(commands()) >= 10
    for name, *arguments in commands():
        command = group.commands[name]
        command.make_context(name, list(arguments)).close()


def test_the_readmes_table_names_every_command():
    table = re.findall(r"^\| `([a-z-]+)", README, flags=re.M)
    assert set(get_command(app).commands) <= set(table)


@pytest.mark.slow
def test_the_readmes_commands_on_digits_run_word_for_word(process, tmp_path):
    write_digits(tmp_path / "digits")
    ran = [process(*arguments) for arguments in digits_commands()]
    assert len(ran) >= 7
    assert (tmp_path / "student.safetensors").exists()
    facts = next(json.loads(done.stdout) for done in ran if '"complete views"' in done.stdout)
    assert facts["complete views"] == facts["views"]
    with serving(tmp_path) as url:
        jobs = httpx.get(f"{url}/api/v1/jobs").json()["jobs"]
    assert {job["state"] for job in jobs} == {"succeeded"}
    folded = timm.utils.reparameterize_model(timm.create_model("ghostnetv3_050", num_classes=10))
    folded.load_state_dict(load_file(tmp_path / "student.safetensors"))


@pytest.mark.slow
def test_the_commands_of_the_page_on_teachers_run_word_for_word(process, tmp_path):
    write_digits(tmp_path / "digits")
    (block,) = blocks(TEACHERS)
    ran = {arguments[0]: process(*arguments).stdout for arguments in parsed(block)}
    assert json.loads(ran["evaluate"])["top1"] > 90
    assert json.loads(ran["inspect-cache"])["complete views"] == 4
    assert json.loads(ran["audit-cache"])["passed"] is True
