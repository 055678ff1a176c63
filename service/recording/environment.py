"""What a job ran on: the commit of its checkout, the versions of the libraries that count."""

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = (
    "retort-distill",
    "torch",
    "torchvision",
    "timm",
    "zarr",
    "numcodecs",
    "pillow",
    "numpy",
)
GIT_TIMEOUT_S = 5.0


def libraries() -> dict[str, str | bool | None]:
    """Return the version of each library that is installed, without importing any."""
    found: dict[str, str | bool | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def checkout(folder: Path | None = None) -> dict[str, str | bool | None]:
    """Return the git commit that this code was run from, and whether files differ from it.

    Empty where the code is installed, or where git is missing, slow, or refuses the folder.
    """
    root = Path(__file__).resolve().parents[2] if folder is None else folder
    if not (root / ".git").exists():
        return {}
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "git_dirty": None if changed is None else changed != ""}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            # a job must never wait for, or hold, the lock of a user's own git command
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
