"""Small real things that the tests share: scanned digits, a trained teacher, a filled cache."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from small import REPOSITORY, cache_recipe, cli_environment, fill_cache


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # two are slower on networks this small, and much slower under load


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """Scanned digits as class folders: 3 classes x 30 images to train on, x 10 to validate."""
    root = tmp_path_factory.mktemp("scans")
    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)
    for label in range(3):
        for number, scan in enumerate(pixels[digits.target == label][:40]):
            folder = root / ("train" if number < 30 else "val") / f"digit-{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scan).resize((40, 40), Image.Resampling.BICUBIC).save(
                folder / f"{number:03}.png"
            )
    return root


@pytest.fixture
def own_scans(scans, tmp_path):
    """A copy of the scans that a test may damage."""
    return Path(shutil.copytree(scans, tmp_path / "scans"))


@pytest.fixture(scope="session")
def filled(scans, tmp_path_factory):
    """A full cache of the scans, not to be changed; `own_cache` is a copy."""
    return fill_cache(tmp_path_factory.mktemp("filled") / "cache", scans / "train", cache_recipe())


@pytest.fixture
def own_cache(filled, tmp_path):
    """The folder of a full cache that a test may damage."""
    return Path(shutil.copytree(filled.root, tmp_path / "cache"))


@pytest.fixture
def cli(tmp_path):
    """Run `cli.py` as a user does: a process of its own, records in the test's folder."""

    def run(*arguments, check=None, env=None):
        done = subprocess.run(
            [sys.executable, REPOSITORY / "cli.py", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=cli_environment(tmp_path) | (env or {}),
            timeout=120,
            check=False,
        )
        if check is not None:
            assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run
