"""The distribution: built from a checkout and from its own sdist, with and without a compiler."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import pytest
from repository import REPOSITORY

pytestmark = pytest.mark.slow

SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


def built(source, out, **environment):
    """A wheel of the source, without a network: setuptools is this environment's."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "--wheel-dir", out, source],
        check=True, env=os.environ | environment, cwd=out.parent,
    )  # fmt: skip
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What is in the repository, unpacked from an sdist that is built of it."""
    folder = tmp_path_factory.mktemp("sdist")
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    checkout = folder / "checkout"
    for name in filter(None, files):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run(
        [sys.executable, "-c", SDIST, folder], cwd=checkout, check=True, capture_output=True
    )
    (archive,) = folder.glob("retort_distill-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked


@pytest.mark.parametrize("compiler", ["there", "missing"])
def test_an_installed_wheel_has_its_commands_recipes_pages_and_engine(source, tmp_path, compiler):
    without = {"CC": "/no/compiler"} if compiler == "missing" else {}
    own_source = shutil.copytree(source, tmp_path / "source")  # it is built in place
    wheel = built(own_source, tmp_path / "wheels", **without)
    assert wheel.name.startswith("retort_distill-")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    for needed in (
        "teacher_cache/recipes/digits.toml", "student/recipes/digits-student.toml",
        "student/studies/table4.toml", "service/web/page/templates/jobs.html",
    ):  # fmt: skip
        assert needed in names
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    own = environment / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    with zipfile.ZipFile(wheel) as archive:  # what an installer does, but for the script
        archive.extractall(own)
    # what it depends on is this environment's: found after its own files
    (own / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = environment / "bin" / "python"
    code = (
        "import importlib.metadata as m, teacher_cache.pixels as p;"
        "from pathlib import Path;"
        "print(m.entry_points(group='console_scripts')['retort'].value);"
        "print(Path(p.__file__).parent);"
        "print(bool(list(Path(p.__file__).parent.glob('_native*.so'))))"
    )
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = subprocess.run(
        [python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True, env=clean
    ).stdout.split()
    assert said[0] == "cli:main"
    assert said[1] == str(own / "teacher_cache" / "pixels")
    assert said[2] == str(compiler == "there")
    listed = subprocess.run(
        [python, "-c", "import cli; cli.main()", "recipes"],
        cwd=tmp_path, capture_output=True, text=True, check=True, env=clean,
    ).stdout  # fmt: skip
    assert "table4" in listed
    assert "beitv2-base-imagenet" in listed
