import subprocess
from pathlib import Path

import pytest
from repository import REPOSITORY

from service.recording.environment import checkout, libraries


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def test_a_checkout_has_a_commit_and_says_when_files_differ_from_it(tmp_path: Path) -> None:
    assert checkout(tmp_path) == {}
    git(tmp_path, "init", "-q")
    assert checkout(tmp_path) == {}  # no commit yet
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert checkout(tmp_path) == {"git_commit": commit, "git_dirty": False}
    (tmp_path / "a.py").write_text("2")
    assert checkout(tmp_path) == {"git_commit": commit, "git_dirty": True}


def test_the_checkout_that_is_run_from_is_this_one() -> None:
    assert checkout() == checkout(REPOSITORY)


def test_without_git_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkout(tmp_path) == {}


def test_libraries_are_those_installed_here() -> None:
    assert {"numpy", "torch", "timm"} <= set(libraries())
