"""What the page says at a glance is true: figures that are not finite, failures, what is new."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, Route, expect

from service.jobs import State
from service.records.events import EventKind, Log, Said
from service.records.job_store import JobStore
from service.records.series import Point


@pytest.fixture
def running(store: JobStore, create: Callable[..., str]) -> str:
    job = create(store)
    store.transition(job, State.RUNNING)
    return job


def write(store: JobStore, job: str, points: list[Point], **metrics: float | None) -> None:
    plain = {"total": 100, "resumed": 0, "rate": None, "eta_s": None}
    store.update(job, done=len(points), metrics=metrics, points=points, **plain)  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_any_more_is_said_and_its_line_breaks(
    base: str, store: JobStore, running: str, open_tab: Callable[..., Page]
) -> None:
    values = [1.0, 0.9, None, None, 0.8, 0.7, None]
    points = [Point("loss", step, value) for step, value in enumerate(values)]
    write(store, running, [*points, Point("top1", 3, 50.0)], loss=None)
    page = open_tab(base)
    expect(page.locator(".metrics")).to_contain_text("loss not finite")
    page = open_tab(f"{base}/jobs/{running}")
    loss = page.locator("figure").first
    expect(loss.locator(".legend li")).to_have_text("loss not finite")
    expect(loss.get_by_role("img")).to_have_attribute(
        "aria-label", "Loss by step; last: loss not finite"
    )
    assert page.evaluate(GAPS) == 1


# How often the line of the loss is broken, as uPlot itself found when it drew it.
GAPS = """async () => {
  const { Chart } = await import("/static/chart.js");
  const answer = await fetch(`/api/v1${location.pathname}/metrics?name=loss&name=top1`);
  const chart = new Chart({ title: "Both", names: ["loss", "top1"] });
  document.body.append(chart.node);
  chart.update((await answer.json()).series, [0, 6]);
  await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return chart.plot.series[1]._paths.gaps.length;
}"""


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([0.0100, 0.0102, 0.0104], 2e-4),
        ([0.01, 0.010025, 0.01005], 2.5e-5),
        ([0, 0.5, 1, 1.5], 0.5),
        ([1_200_100, 1_200_300], 200),
        ([1e-7, 1.5e-7], 5e-8),
    ],
)
def test_the_marks_of_an_axis_say_where_they_are(
    values: list[float], step: float, base: str, store: JobStore, open_tab: Callable[..., Page]
) -> None:
    page = open_tab(base)
    told = "async (given) => (await import('/static/format.js')).ticks(...given)"
    labels = page.evaluate(told, [values, step])
    powers = {"K": "e3", "M": "e6", "E": "e"}
    read = [float("".join(powers.get(sign, sign) for sign in label)) for label in labels]
    assert read == pytest.approx(values, rel=1e-12), "each says its own value"


def refuse(status: int, body: str, kind: str) -> Callable[[Route], None]:
    return lambda route: route.fulfill(status=status, body=body, content_type=kind)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, '{"detail": "slow down"}', "application/problem+json"),
        (403, "<h1>Forbidden</h1>", "text/html"),
        (200, "<h1>Sign in</h1>", "text/html"),
    ],
)
def test_a_page_that_is_refused_says_so_and_asks_on(
    status: int,
    body: str,
    kind: str,
    base: str,
    running: str,
    open_tab: Callable[..., Page],
) -> None:
    page = open_tab(f"{base}/jobs/{running}")
    expect(page.locator("#link")).to_have_text("live")
    page.route("**/api/**", refuse(status, body, kind))
    expect(page.locator("#link")).to_have_text(re.compile("; trying again$"))
    page.unroute("**/api/**")
    expect(page.locator("#link")).to_have_text("live")


def test_a_finished_job_whose_first_answer_failed_gets_its_charts(
    base: str, store: JobStore, running: str, open_tab: Callable[..., Page]
) -> None:
    write(store, running, [Point("loss", step, 1.0) for step in range(5)], loss=1.0)
    store.transition(running, State.SUCCEEDED)
    page = open_tab(base)
    failed = []

    def fail_once(route: Route) -> None:
        if failed:
            route.continue_()
            return
        failed.append(route.request.url)
        route.abort()

    page.route("**/metrics", fail_once)
    page.goto(f"{base}/jobs/{running}")
    expect(page.locator("figure canvas").first).to_be_visible(timeout=15_000)
    assert failed


def test_the_newest_events_are_shown_and_what_follows_them(
    base: str, store: JobStore, running: str, open_tab: Callable[..., Page]
) -> None:
    say(store, running, range(600))
    page = open_tab(f"{base}/jobs/{running}")
    events = page.locator(".events li")
    expect(events.first).to_contain_text("saved at 599")
    expect(events.last).to_contain_text("Earlier events are left out")
    say(store, running, range(600, 1100))
    store.transition(running, State.FAILED, "OSError: No space left on device")
    expect(events.first).to_contain_text("No space left on device")
    expect(events).to_have_count(200 + 501 + 1)


def test_a_failed_job_shows_its_traceback_and_the_end_of_its_log(
    base: str, store: JobStore, running: str, open_tab: Callable[..., Page]
) -> None:
    lines = [f"10:00:00 INFO {step}/100 steps" for step in range(100)]
    lines.append("10:00:00 WARNING the disk is <b>full</b>")
    store.keep_log(running, Log(tuple(lines), "Traceback\n  boom"))
    store.transition(running, State.FAILED, "OSError: boom")
    page = open_tab(f"{base}/jobs/{running}")
    expect(page.get_by_role("region", name="Traceback")).to_have_text("Traceback\n  boom")
    log = page.get_by_role("region", name="Log")
    expect(log).to_contain_text("the disk is <b>full</b>")
    end = "log => log.scrollTop + log.clientHeight >= log.scrollHeight - 1 && log.scrollTop > 0"
    page.wait_for_function(f"() => ({end})(document.querySelector('#log pre'))")


def say(store: JobStore, job: str, numbers: range) -> None:
    said = [Said(number, EventKind.CHECKPOINT, f"saved at {number}") for number in numbers]
    store.heartbeat(job, said=said)
