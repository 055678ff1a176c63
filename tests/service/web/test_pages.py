"""The page in a real browser, before a real service and real jobs."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_service import live_service
from playwright.sync_api import Page, expect
from repository import REPOSITORY

from service.jobs import State, job_id
from service.records.job_store import JobStore
from service.records.rank_rows import Rank
from service.records.series import Point

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 360, "height": 740}
TOKEN = "a-token-of-thirty-two-bytes-or-more"

JOB = """
import pathlib, sys, time
from service.recording.recorder import record_job
url, steps, pause_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
go_on = pathlib.Path(sys.argv[4]) if len(sys.argv) > 4 else None
config = {"student": "ghostnetv3_100", "epochs": 3}
with record_job(url, kind="train-student", unit="steps", config=config) as recorder:
    for step in range(1, steps + 1):
        ce, kd = 4 / step**0.5, 3 / step**0.5
        metrics = {"loss": 0.1 * ce + 0.9 * kd, "ce": ce, "kd": kd, "images_per_s": 100.0}
        if step % 10 == 0:
            metrics |= {"top1": 50 + step / 4, "ema_top1": 52 + step / 4}
        recorder.progress(step, steps, metrics)
        time.sleep(pause_s)
        while step == steps // 2 and go_on is not None and not go_on.exists():
            time.sleep(0.05)
"""

CANCELLABLE = """
import sys, time
from service.recording.recorder import record_job
with record_job(sys.argv[1], kind="train-student", unit="steps") as recorder:
    print(recorder.job_id, flush=True)
    for step in range(10_000):
        recorder.progress(step, 10_000)
        time.sleep(0.05)
        if recorder.cancel_requested:
            recorder.finish("cancelled")
            break
"""


@pytest.fixture
def trained(store: JobStore) -> str:
    """A job of 3,000 steps that runs, with all that a page shows."""
    return record_training(store)


def record_training(store: JobStore) -> str:
    job = job_id(1, bytes(10))
    store.create(
        job,
        kind="train-student",
        unit="steps",
        host="gpu-1",
        pid=7,
        config={"student": "ghostnetv3_100", "epochs": 600},
        environment={"torch": "2.15.0", "git_dirty": False},
        target="run",
    )
    store.transition(job, State.RUNNING)
    points = [
        Point(name, step, value / (step + 50))
        for step in range(0, 3000, 3)
        for name, value in (("loss", 90.0), ("ce", 120.0), ("kd", 80.0), ("images_per_s", 1e5))
    ]
    points += [
        Point(f"{name}_share", step, value)
        for step in range(0, 3000, 50)
        for name, value in (("data_wait", 0.1), ("copy", 0.01), ("compute", 0.85), ("ranks", 0.02))
    ]
    points += [
        Point(f"{name}_share", step, value)
        for step in range(500, 3000, 500)
        for name, value in (("evaluation", 0.07), ("checkpoint", 0.03))
    ]
    points += [
        Point(name, step, 70 - 5e4 / (step + 1000))
        for step in range(500, 3000, 500)
        for name in ("top1", "ema_top1")
    ]
    store.update(
        job,
        done=3000,
        total=5000,
        resumed=400,
        rate=3.0,
        eta_s=666.0,
        metrics={"loss": 0.03, "ema_top1": 57.5},
        points=points,
    )
    return job


def test_a_live_job_is_followed_from_the_list_to_its_end(
    base: str, url: str, open_tab: Callable[..., Page], start_python: Callable[..., Any],
    tmp_path: Path,
) -> None:  # fmt: skip
    page = open_tab(base)
    expect(page.get_by_text("No job has recorded itself yet.")).to_be_visible()
    seen_running = tmp_path / "seen running"
    process = start_python(JOB, url, "60", "0.02", str(seen_running))
    link = page.get_by_role("link", name="train-student")
    expect(link).to_be_visible()
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuetext", re.compile("steps"))
    link.click()
    expect(page.locator("#status")).to_have_text("● running")
    first = page.get_by_role("progressbar").first
    before = float(first.evaluate("bar => bar.value"))
    seen_running.touch()
    expect(page.locator("#status")).to_have_text("✓ succeeded")
    assert process.wait(timeout=60) == 0
    assert float(first.evaluate("bar => bar.value / bar.max")) == 1.0 > before / 60
    assert page.title() == "100% train-student · Retort"
    titles = page.locator("figure h2").all_inner_texts()
    assert titles[:3] == ["Loss", "Top-1", "Speed"]
    loss = page.locator("figure").first
    loss.get_by_text("Table").click()
    rows = loss.locator("tbody tr")
    expect(rows.first).to_contain_text("60")
    (job,) = httpx.get(f"{base}/api/v1/jobs").json()["jobs"]
    series = httpx.get(f"{base}/api/v1/jobs/{job['id']}/metrics?name=loss").json()["series"][0]
    assert rows.count() == len(series["steps"])
    assert f"{series['last'][-1]:.4g}" in rows.first.inner_text()
    events = page.locator(".events li")
    assert "succeeded" in events.first.inner_text()


def test_shares_of_an_epoch_stand_apart_from_those_of_the_intervals_within(
    base: str, trained: str, open_tab: Callable[..., Page]
) -> None:
    page = open_tab(f"{base}/jobs/{trained}")
    figures = {}
    expect(page.locator("figure canvas").nth(4)).to_be_visible()
    for figure in page.locator("figure").all():
        legend = figure.locator(".legend li").all_inner_texts()
        figures[figure.locator("h2").inner_text()] = [text.replace("\n", " ") for text in legend]
    assert figures["Shares of an epoch"] == ["evaluation share 7%", "checkpoint share 3%"]
    assert figures["Shares of time"] == [
        "data wait share 10%", "compute share 85%", "copy share 1%", "ranks share 2%"
    ]  # fmt: skip


def test_nothing_is_sent_again_that_the_page_already_has(
    base: str, trained: str, open_tab: Callable[..., Page], eventually: Callable[..., None]
) -> None:
    for path, asked in (
        ("/", r"/api/v1/jobs\?limit=50"),
        (f"/jobs/{trained}", f"/jobs/{trained}$"),
    ):
        page = open_tab(base + path)
        expect(page.get_by_role("progressbar").first).to_be_visible()
        answers: list[int] = []
        page.on(
            "response",
            lambda answer, kept=answers, end=asked: (
                kept.append(answer.status) if re.search(end, answer.url) else None
            ),
        )
        eventually(lambda tab=page, kept=answers: tab.wait_for_timeout(100) or len(kept) > 1)
        assert set(answers) == {304}


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_pages_fit_and_can_be_read(
    scheme: str,
    viewport: dict[str, int],
    base: str,
    store: JobStore,
    trained: str,
    open_tab: Callable[..., Page],
    tmp_path: Path,
) -> None:
    failed = job_id(2, bytes(10))
    store.create(failed, kind="cache-teacher", unit="records", host="gpu-2", pid=8, config={})
    store.transition(failed, State.RUNNING)
    store.transition(failed, State.FAILED, "OSError: No space left on device")
    for rank in range(4):
        beaten = Rank(rank, f"gpu-{rank // 2}", 70 + rank, State.RUNNING, 900 - 300 * (rank == 2))
        store.beat_rank("run", 0, beaten)
    folder = Path(os.environ.get("RETORT_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in (("jobs", "/"), ("job", f"/jobs/{trained}"), ("failed", f"/jobs/{failed}")):
        page = open_tab(base + path, viewport=viewport, color_scheme=scheme)
        expect(page.get_by_role("progressbar").first).to_be_visible()
        if name == "job":
            expect(page.locator("figure canvas").nth(2)).to_be_visible()
            expect(page.locator(".straggler")).to_contain_text("straggler")
        page.screenshot(path=folder / f"{name}-{scheme}-{viewport['width']}.png", full_page=True)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= viewport["width"], f"{name} scrolls sideways: {wide} px"
        assert page.evaluate(UNREADABLE) == []
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, re.findall(r"\d+", paper)[:3])) / 3
        assert (brightness > 128) == (scheme == "light")


# Texts whose contrast to what lies behind them is below 4.5 (WCAG 2.2, 1.4.3), with the ratio.
UNREADABLE = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const channel = (value) => {
    const c = value / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.push([walker.currentNode.data.trim(), ratio]);
  }
  return found;
}"""


def test_a_token_is_asked_for_once_and_kept_for_the_tab(
    url: str, store: JobStore, trained: str, open_tab: Callable[..., Page]
) -> None:
    with live_service(url, token=TOKEN) as base:
        page = open_tab(base)
        dialog = page.get_by_role("dialog", name="This service asks for its token")
        expect(dialog).to_be_visible()
        expect(page.get_by_label("Token", exact=True)).to_be_focused()
        page.keyboard.type("not the token")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_have_text("That token was refused.")
        page.get_by_label("Token", exact=True).fill(TOKEN)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        page.get_by_role("link", name="train-student").click()
        expect(page.locator("#status")).to_have_text("● running")
        page.reload()
        expect(page.locator("#status")).to_have_text("● running")
        assert dialog.is_hidden()
        assert TOKEN not in page.url
        assert page.evaluate("localStorage.length") == 0
        assert page.context.cookies() == []
        other = open_tab(f"{base}/jobs/{trained}")
        expect(other.get_by_role("dialog")).to_be_visible()
        assert other.locator("#kind").inner_text() == ""


def test_everything_can_be_reached_by_keyboard(
    base: str, trained: str, open_tab: Callable[..., Page]
) -> None:
    page = open_tab(base)
    expect(page.get_by_role("link", name="train-student")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("State")).to_be_focused()
    page.keyboard.type("f")  # failed
    expect(page.get_by_text("No job matches.")).to_be_visible()
    assert page.url.endswith("?status=failed")
    for _ in range(3):
        page.keyboard.press("ArrowUp")  # running
    expect(page.get_by_role("link", name="train-student")).to_be_visible()
    expect(page.get_by_label("State")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="train-student")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("figure canvas").first).to_be_visible()
    page.locator("#cancel").focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Stop this job?")
    expect(dialog).to_be_visible()
    expect(page.get_by_role("button", name="Keep it running")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator("#cancel")).to_be_focused()
    expect(page.locator("#status")).to_have_text("● running")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    table = page.get_by_role("region", name="Loss, as a table")
    expect(table.get_by_role("columnheader")).to_have_text(
        ["step", "loss", "cross-entropy", "distillation"]
    )


def test_a_job_is_stopped_from_the_page(
    base: str, url: str, open_tab: Callable[..., Page], start_python: Callable[..., Any]
) -> None:
    process = start_python(CANCELLABLE, url)
    job = process.stdout.readline().strip()
    page = open_tab(f"{base}/jobs/{job}")
    expect(page.locator("#status")).to_have_text("● running")
    page.get_by_role("button", name="Stop…").click()
    page.get_by_role("button", name="Stop the job").click()
    expect(page.locator("#status")).to_have_text("– cancelled")
    assert process.wait(timeout=60) == 0
    expect(page.get_by_role("button", name="Stop…")).to_be_hidden()


def test_a_job_that_ended_meanwhile_cannot_be_stopped_and_the_page_says_why(
    base: str, store: JobStore, trained: str, open_tab: Callable[..., Page]
) -> None:
    page = open_tab(f"{base}/jobs/{trained}")
    page.get_by_role("button", name="Stop…").click()
    store.transition(trained, State.SUCCEEDED)
    page.get_by_role("button", name="Stop the job").click()
    expect(page.locator("#refused")).to_have_text("the job has ended: it is succeeded")
    expect(page.locator("#status")).to_have_text("✓ succeeded")


@pytest.mark.slow
def test_a_silent_job_reads_as_stale_then_as_crashed(
    url: str, store: JobStore, trained: str, open_tab: Callable[..., Page]
) -> None:
    with live_service(url, stale_s=3.0) as base:
        page = open_tab(f"{base}/jobs/{trained}")
        store.heartbeat(trained)
        page.reload()
        expect(page.locator("#status")).to_have_text("● running")
        expect(page.locator("#status")).to_have_text("? stale")
        expect(page.locator("#reason")).to_contain_text("A late heartbeat heals this.")
        store.heartbeat(trained)
        page.reload()
        expect(page.locator("#status")).to_have_text("● running")
    with live_service(url, stale_s=0.0, crashed_s=0.0) as base:
        page = open_tab(f"{base}/jobs/{trained}")
        expect(page.locator("#status")).to_have_text("✕ crashed")
        expect(page.locator("#reason")).to_contain_text("The same command continues it.")


@pytest.mark.slow
def test_a_service_that_goes_away_is_told_of_and_waited_for(
    url: str, store: JobStore, trained: str, open_tab: Callable[..., Page]
) -> None:
    with live_service(url) as base:
        page = open_tab(base)
        expect(page.locator("#link")).to_have_text("live")
    expect(page.locator("#link")).to_have_text("the service does not answer; trying again")
    assert page.get_by_role("link", name="train-student").is_visible(), "what was known stays"
    with live_service(url, port=int(base.rsplit(":", 1)[1])):
        expect(page.locator("#link")).to_have_text("live")


def test_older_jobs_are_one_link_away(
    base: str, store: JobStore, create: Callable[..., str], open_tab: Callable[..., Page]
) -> None:
    jobs = [create(store, number) for number in range(1, 53)]
    page = open_tab(base)
    expect(page.locator("tbody tr")).to_have_count(50)
    page.get_by_role("link", name="Older jobs").click()
    expect(page.locator("tbody tr")).to_have_count(2)
    last = page.locator("tbody tr a").last
    assert last.get_attribute("href") == f"jobs/{jobs[0]}"
    page.get_by_role("link", name="Newest").click()
    expect(page.locator("tbody tr")).to_have_count(50)


def test_what_a_job_says_of_itself_is_text_and_never_markup(
    base: str, store: JobStore, open_tab: Callable[..., Page]
) -> None:
    markup = "<img src=/x onerror=alert(1)><script>alert(2)</script>"
    job = job_id(1, bytes(10))
    store.create(job, kind=markup, unit=markup, host=markup, pid=1, config={markup: markup})
    store.transition(job, State.RUNNING)
    point = Point(markup[:64], 1, 1.0)
    store.update(
        job,
        done=1,
        total=2,
        resumed=0,
        rate=None,
        eta_s=None,
        metrics={markup: 1.0},
        points=[point],
    )
    store.transition(job, State.FAILED, markup)
    for path in ("/", f"/jobs/{job}"):
        page = open_tab(base + path)
        expect(page.get_by_text(markup).first).to_be_visible()
        page.wait_for_timeout(300)
        assert page.locator("main img, main script").count() == 0


def test_the_pages_are_the_same_for_everyone_and_a_wrong_id_is_a_problem(
    base: str, trained: str
) -> None:
    with httpx.Client(base_url=base) as client:
        page = client.get(f"/jobs/{trained}")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert trained not in page.text
        assert not re.search(r"<script(?![^>]*src=)|style=|<style| on\w+=", page.text)
        for path in ("/jobs/nope", "/static/../app.py", "/static/nothing.js", "/jobs/" + "a" * 33):
            answer = client.get(path)
            assert answer.status_code in (404, 422), path
            assert answer.headers["content-type"] == "application/problem+json"
        script = client.get("/static/job.js")
        again = client.get("/static/job.js", headers={"If-None-Match": script.headers["etag"]})
        assert again.status_code == 304


def test_a_job_that_does_not_exist_is_said_to(base: str, open_tab: Callable[..., Page]) -> None:
    page = open_tab(f"{base}/jobs/{'0' * 32}")
    expect(page.get_by_role("alert").first).to_contain_text("there is no such job")


def test_the_vendored_chart_is_the_published_one() -> None:
    from hashlib import sha256

    folder = REPOSITORY / "service" / "web" / "page" / "static" / "uplot"
    listed = re.findall(r"\| `([\w.]+)` \| ([0-9a-f]{64}) \|", (folder / "README.md").read_text())
    assert len(listed) == 2
    for name, digest in listed:
        assert sha256((folder / name).read_bytes()).hexdigest() == digest
    assert "MIT" in (folder / "LICENSE").read_text()
