"""The C as machines without AVX2 build it gives the same pixels."""

import os
import shutil
import subprocess
import sys

import pytest
from repository import REPOSITORY

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None, reason="there is no C compiler here: cc is not on the PATH"
)

# Python runs this before anything else: `teacher_cache.pixels._native` is then the other build.
PRELOADED = """
import importlib.machinery, importlib.util, pathlib, sys
name = "teacher_cache.pixels._native"
(path,) = pathlib.Path(__file__).parent.rglob("_native*.so")
spec = importlib.util.spec_from_file_location(name, path)
sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[name])
"""


@pytest.mark.slow
def test_the_plain_build_passes_the_engines_tests(tmp_path):
    built = subprocess.run(
        [
            *(sys.executable, "setup.py", "--quiet", "build_ext"),
            *("--build-lib", tmp_path, "--build-temp", tmp_path / "objects"),
        ],
        cwd=REPOSITORY, env=os.environ | {"CFLAGS": "-DRETORT_PLAIN"}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (tmp_path / "sitecustomize.py").write_text(PRELOADED)
    where = (
        "from teacher_cache.pixels.engine import native; "
        "print(native.__file__, hasattr(native, 'affine'))"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    done = subprocess.run(
        [sys.executable, "-c", where], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path))
    assert done.stdout.endswith("True\n")
    tests = [
        REPOSITORY / "tests/teacher_cache/pixels" / name
        for name in ("test_engine.py", "test_ops.py")
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *tests],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
