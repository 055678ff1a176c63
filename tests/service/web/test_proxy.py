"""The service behind nginx: with a rewritten Host, and below a path, cut off or not."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright
from repository import REPOSITORY
from serving import free_port

from service.jobs import State
from service.records.job_store import JobStore
from service.web.security import access_to

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        NGINX is None, reason="no nginx here ('make browser' installs it): no proxy is tried"
    ),
]
SERVE = """
    import sys
    from service.web.app import serve
    serve(port=int(sys.argv[2]), url=sys.argv[1], public_url=sys.argv[3])
"""
FRAME = """
daemon off; pid {folder}/pid; error_log stderr; worker_processes 1;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{ listen 127.0.0.1:{port}; {locations} }}
}}
"""
WAYS = {
    "rewritten Host": ("", "location / {{ proxy_pass http://127.0.0.1:{to}; }}"),
    "kept Host": (
        "",
        "location / {{ proxy_pass http://127.0.0.1:{to}; proxy_set_header Host $http_host; }}",
    ),
    "path cut off": ("/retort", "location /retort/ {{ proxy_pass http://127.0.0.1:{to}/; }}"),
    "path kept": ("/tools/retort", "location /tools/ {{ proxy_pass http://127.0.0.1:{to}; }}"),
}


@pytest.fixture(params=WAYS)
def published(
    request: pytest.FixtureRequest,
    url: str,
    tmp_path: Path,
    start_python: Callable[..., subprocess.Popen[str]],
    eventually: Callable[..., None],
) -> Iterator[str]:
    """The service behind nginx; yields the URL where that publishes it."""
    path, locations = WAYS[request.param]
    port, to = free_port(), free_port()
    public = f"http://localhost:{port}{path}"
    start_python(SERVE, url, str(to), public)
    folder = tmp_path / "nginx"
    folder.mkdir()
    config = folder / "nginx.conf"
    config.write_text(FRAME.format(folder=folder, port=port, locations=locations.format(to=to)))
    process = subprocess.Popen([str(NGINX), "-p", str(folder), "-c", str(config)])
    try:
        eventually(lambda: is_up(f"{public}/livez"), 60.0)
        yield public
    finally:
        process.terminate()
        process.wait()


def is_up(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def test_behind_a_proxy_a_job_is_shown_and_only_its_own_page_stops_it(
    published: str, store: JobStore, create: Callable[..., str]
) -> None:
    job = create(store)
    origin = "/".join(published.split("/")[:3])
    with httpx.Client(base_url=published) as client:
        assert client.get("/api/v1/jobs").json()["jobs"][0]["id"] == job
        assert client.head("/api/v1/jobs").content == b""
        cancel = f"/api/v1/jobs/{job}/cancel"
        foreign = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
        assert client.post(cancel, headers=foreign).status_code == 403
        own = {"origin": origin, "sec-fetch-site": "same-origin"}
        assert client.post(cancel, headers=own).status_code == 202


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here ('make browser' installs one)")
def test_behind_a_proxy_the_page_lists_shows_and_stops_a_job(
    published: str, store: JobStore, create: Callable[..., str], eventually: Callable[..., None]
) -> None:
    job = create(store)
    store.transition(job, State.RUNNING)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page()
        page.goto(f"{published}/")
        page.get_by_role("link", name="train-student").click()
        expect(page.locator("#id")).to_have_text(job)
        page.get_by_role("button", name="Stop…").click()
        page.get_by_role("button", name="Stop the job").click()
        expect(page.locator("#status")).to_contain_text("cancelling")
        page.get_by_role("link", name="Jobs").click()
        expect(page.get_by_role("link", name="train-student")).to_be_visible()
        page.goto(f"{published}/jobs/{job[:12]}")
        expect(page.locator("#id")).to_have_text(job)
        browser.close()
    found = store.get(job)
    assert found is not None
    assert found.record.state is State.CANCELLING


def test_the_documented_ways_are_those_that_are_tried() -> None:
    page = (REPOSITORY / "docs" / "deploy.md").read_text()
    for path, locations in WAYS.values():
        shown = locations.format(to=8000)
        assert " ".join(shown.split()) in " ".join(page.split()), shown
        assert access_to("127.0.0.1", public_url=f"https://example.org{path}").prefix == path
