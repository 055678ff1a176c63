"""A real browser before a real service."""

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live_service import live_service
from playwright.sync_api import Browser, Page, expect, sync_playwright

from service.records.job_store import JobStore

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDE = {"width": 1280, "height": 800}

expect.set_options(timeout=60_000)  # only a failure takes as long; machines may be slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium here ('make browser' installs one): the page is not tried")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a tab; at the end none has met an error, or asked anyone but the service."""
    contexts, faults = [], []

    def open_(url: str, **settings: Any) -> Page:
        context = browser.new_context(**{"viewport": WIDE, **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        origin = "/".join(url.split("/")[:3])
        page.on("request", lambda asked: asked.url.startswith(origin) or faults.append(asked.url))
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    # what a browser logs of answers that a test provokes: 401, 404, 409, and a service away
    assert [fault for fault in faults if "Failed to load resource" not in fault] == []


@pytest.fixture
def base(url: str, store: JobStore) -> Iterator[str]:
    with live_service(url) as base:
        yield base
