"""The service in an environment that has only what it needs: no torch, no network."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from repository import REPOSITORY

from service.recording.recorder import record_job

NEEDED = ("fastapi", "jinja2", "prometheus-client", "pydantic", "sqlalchemy", "typer", "uvicorn")
ABSENT = ("torch", "torchvision", "numpy", "zarr", "timm", "PIL", "safetensors", "numcodecs")

SERVE = f"""
import sys
sys.path += sys.argv[2:]
for name in {ABSENT}:
    try:
        __import__(name)
    except ModuleNotFoundError:
        pass
    else:
        sys.exit(f"{{name}} can be imported here: this proves nothing")
import service.web.app, service.recording.recorder
foreign = {{"teacher_cache", "student", "cli"}} & set(sys.modules)
if foreign:
    sys.exit(f"the service imported {{foreign}}")
service.web.app.serve(port=0, url=sys.argv[1])
"""


def closure(names: tuple[str, ...]) -> dict[str, Distribution]:
    """Return the distributions that these need, themselves among them, on this platform."""
    found: dict[str, Distribution] = {}
    open_names = list(names)
    while open_names:
        name = re.sub(r"[-_.]+", "-", open_names.pop()).lower()
        if name in found:
            continue
        found[name] = distribution(name)
        for line in found[name].requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                open_names.append(requirement.name)
    return found


def link(distributions: dict[str, Distribution], folder: Path) -> None:
    """Make `folder` hold the top-level packages and modules of these distributions, no others."""
    for installed in distributions.values():
        tops = {file.parts[0] for file in installed.files or () if file.parts[0] != ".."}
        for top in tops - {"__pycache__"}:
            target = folder / top
            if not target.exists():
                target.symlink_to(Path(str(installed.locate_file(top))))


@pytest.fixture
def service(tmp_path: Path, url: str) -> Iterator[str]:
    """Start the service in its own environment; yields its base URL."""
    packages = tmp_path / "packages"
    packages.mkdir()
    link(closure(NEEDED), packages)
    arguments = [url, str(packages), str(REPOSITORY)]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", SERVE, *arguments], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if address := re.search(r"http://127\.0\.0\.1:\d+", line):
            yield address[0]
            break
    else:
        pytest.fail(f"the service did not start: {said}")
    process.terminate()
    _, errors = process.communicate(timeout=5)
    assert process.returncode in (0, -15), errors


def test_the_packages_it_needs_include_none_of_training() -> None:
    names = set(closure(NEEDED))
    assert set(NEEDED) <= names
    assert not {name.lower() for name in ABSENT} & names
    assert "pillow" not in names


def test_it_serves_the_records_of_real_jobs_without_torch(service: str, url: str) -> None:
    with httpx.Client(base_url=service) as client:
        assert client.get("/livez").json() == {"status": "alive"}
        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.get("/api/v1/jobs").json()["jobs"] == []
        with record_job(url, kind="train-student", unit="steps") as recorder:
            recorder.progress(7, 9, {"loss": 0.5})
        (row,) = client.get("/api/v1/jobs").json()["jobs"]
        assert (row["id"], row["status"]) == (recorder.job_id, "succeeded")
        body = client.get(f"/api/v1/jobs/{recorder.job_id}").json()
        assert body["progress"] == {"done": 7, "total": 9, "unit": "steps", "resumed": 0}
        assert body["metrics"] == {"loss": 0.5}
        absent = client.get("/api/v1/jobs/" + "0" * 32)
        assert (absent.status_code, absent.headers["content-type"]) == (
            404,
            "application/problem+json",
        )
