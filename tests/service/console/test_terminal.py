"""The display of progress on a real terminal, and where there is none."""

import os
import pty
import select
import subprocess
import sys

import pytest
from repository import REPOSITORY

from service.console.terminal import clock, spell

JOB = """
import sys, time
from dataclasses import dataclass, field
from service.console.terminal import ProgressDisplay

@dataclass(frozen=True)
class Progress:
    done: int
    total: int = 40
    unit: str = "steps"
    resumed: int = 0
    metrics: dict = field(default_factory=dict)

with ProgressDisplay("train-student") as display:
    for step in range(41):
        display.show(Progress(step, metrics={"loss": 4 / (step + 1)}))
        if sys.argv[1] == "fails" and step == 20:
            raise SystemExit("failed on purpose")
        time.sleep(0.02)
print("the line after", file=sys.stderr)
"""


def on_a_terminal(how: str, **environment: str) -> str:
    """Everything that a terminal of 80 columns is sent."""
    leader, follower = pty.openpty()
    variables = {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", JOB, how],
        stderr=follower,
        stdout=subprocess.DEVNULL,
        env=inherited | variables | {"PYTHONPATH": str(REPOSITORY)} | environment,
    )
    os.close(follower)
    said = b""
    while True:
        select.select([leader], [], [], 30)
        try:
            part = os.read(leader, 65_536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        said += part
    os.close(leader)
    process.wait(timeout=30)
    return said.decode()


def test_a_terminal_sees_one_bar_move_to_its_end() -> None:
    said = on_a_terminal("ends")
    assert "━" in said
    assert "40/40 steps" in said
    assert "loss 0.09756" in said
    assert said.count("\x1b[1A") > 3, "lines are drawn over, not below one another"
    assert said.rstrip().endswith("the line after")
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l"), "the cursor is shown again"


def test_no_color_is_heeded() -> None:
    assert "\x1b[38;5;" in on_a_terminal("ends")
    plain = on_a_terminal("ends", NO_COLOR="1")
    assert "\x1b[38;5;" not in plain
    assert "40/40 steps" in plain


def test_a_job_that_fails_leaves_the_terminal_as_it_was() -> None:
    said = on_a_terminal("fails")
    assert "failed on purpose" in said
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}])
def test_a_log_file_gets_plain_lines_and_few(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", JOB, "ends"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
    )
    *lines, last, after = done.stderr.splitlines()
    assert (lines, after) == ([], "the line after")
    assert last.startswith("train-student 100%  40/40 steps  ")
    assert last.endswith("  loss 0.09756")
    assert "\x1b" not in done.stderr


def test_a_dumb_terminal_gets_plain_lines() -> None:
    assert "\x1b" not in on_a_terminal("ends", TERM="dumb")


def test_times_and_figures_are_short() -> None:
    assert [clock(s) for s in (0, 59.6, 61, 3600, 90_061)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "25:01:01",
    ]
    assert spell({"loss": 0.123456, "step": 7, "model": "m", "list": [1]}) == (
        "loss 0.1235  step 7  model m"
    )
