"""Small real things that the tests share: scanned digits, a trained teacher, a filled cache."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import cli_environment, start
from PIL import Image
from sklearn.datasets import load_digits
from small import cache_recipe, fill_cache

from cli import main
from teacher_cache.record import Encoding


def pytest_collection_modifyitems(items):
    """Without a CUDA device, what needs one says so and is skipped."""
    has_device = torch.cuda.is_available()
    for item in items:
        if has_device:  # its driver has threads, and Python 3.12 warns of forking beside threads
            warning = "ignore:This process .* is multi-threaded:DeprecationWarning"
            item.add_marker(pytest.mark.filterwarnings(warning))
        elif item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Each device that there is: the same test, so that what is sure here is sure there."""
    return torch.device(request.param)


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


@pytest.fixture(scope="session")
def encoded(filled, scans, tmp_path_factory):
    """The same cache in any encoding, filled once each, not to be changed."""
    caches = {Encoding.DEFAULT: filled}

    def cache(encoding):
        if encoding not in caches:
            root = tmp_path_factory.mktemp(encoding) / "cache"
            recipe = cache_recipe(storage__encoding=encoding.value)
            caches[encoding] = fill_cache(root, scans / "train", recipe)
        return caches[encoding]

    return cache


@pytest.fixture
def own_cache(filled, tmp_path):
    """The folder of a full cache that a test may damage."""
    return Path(shutil.copytree(filled.place.root, tmp_path / "cache"))


@pytest.fixture(scope="session")
def bucket_server():
    """An S3 endpoint of this test process's own."""
    from buckets import start_bucket_server

    process, server = start_bucket_server()
    yield server
    process.kill()
    process.communicate()


@pytest.fixture
def bucket(bucket_server, tmp_path, monkeypatch):
    """An empty prefix of it, and the environment that leads there."""
    for name, value in bucket_server.environment().items():
        monkeypatch.setenv(name, value)
    return bucket_server.folder(f"{tmp_path.parent.name}/{tmp_path.name}")


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str

    def require(self, code):
        assert self.returncode == code, f"exit {self.returncode}\n{self.stdout}\n{self.stderr}"
        assert "Traceback" not in self.stderr, self.stderr
        return self


@pytest.fixture
def cli(tmp_path, monkeypatch, capfd):
    """Run `cli.py`'s main in this process (no 4 s of imports), in the test's folder."""
    for name, value in cli_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run(*arguments, check=0, env=None):
        capfd.readouterr()
        with monkeypatch.context() as patch:
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["cli.py", *map(str, arguments)])
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code or 0
        return Done(code, *capfd.readouterr()).require(check)

    return run


@pytest.fixture
def process(tmp_path):
    """Run `cli.py` in a process of its own."""

    def run(*arguments, check=0, env=None):
        running = start(tmp_path, arguments, env=env)
        said = running.communicate(timeout=900)
        return Done(running.returncode, *said).require(check)

    return run
