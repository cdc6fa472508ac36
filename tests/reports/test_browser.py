"""The report in headless Chromium, driven through WebDriver: it renders, filters and shows evidence."""

from __future__ import annotations

import base64
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import matplotlib.image
import numpy as np
import pytest

from tests.helpers import free_port, tool, wait_until
from tests.reports.test_reports import directory  # noqa: F401 - a fixture

pytestmark = pytest.mark.browser


class Browser:
    """As much of the WebDriver protocol (W3C) as the tests need."""

    def __init__(self, http: httpx.Client, session: str) -> None:
        self.http = http
        self.session = session

    def call(self, method: str, path: str, **body: Any) -> Any:
        answer = self.http.request(method, f"/session/{self.session}{path}", json=body if method == "POST" else None)
        assert answer.status_code == 200, answer.text
        return answer.json()["value"]

    def run(self, script: str) -> Any:
        return self.call("POST", "/execute/sync", script=script, args=[])

    def click(self, selector: str) -> None:
        element = self.call("POST", "/element", using="css selector", value=selector)
        self.call("POST", f"/element/{next(iter(element.values()))}/click")

    def screenshot(self) -> bytes:
        return base64.b64decode(self.call("GET", "/screenshot"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    driver, chromium = tool("chromedriver"), tool("chromium")
    port = free_port()
    profile = tmp_path_factory.mktemp("profile")
    arguments = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-dev-shm-usage",
        "--window-size=1200,1000",
        f"--user-data-dir={profile}",
    ]
    with (
        subprocess.Popen(
            [driver, f"--port={port}", "--allowed-ips=127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http,
    ):
        try:

            def ready() -> bool:
                try:
                    return bool(http.get("/status").json()["value"]["ready"])
                except httpx.HTTPError:
                    return False

            wait_until(ready, 20, "chromedriver")
            wanted = {
                "goog:chromeOptions": {"binary": chromium, "args": arguments},
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            answer = http.post("/session", json={"capabilities": {"alwaysMatch": wanted}})
            assert answer.status_code == 200, answer.text
            session = answer.json()["value"]["sessionId"]
            yield Browser(http, session)
            http.delete(f"/session/{session}")
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture
def page(browser: Browser, directory: Path) -> Browser:  # noqa: F811
    browser.call("POST", "/url", url=f"file://{directory / 'report.html'}")
    return browser


def visible(page: Browser, selector: str) -> int:
    return int(page.run(f"return [...document.querySelectorAll('{selector}')].filter(e => e.checkVisibility()).length"))


def test_verdict_comes_first_and_nothing_is_logged_as_an_error(page: Browser) -> None:
    first = page.run("return document.querySelector('.verdict').innerText")
    assert first.startswith("Failed")
    assert "rest.infer.id_echo" in first
    assert page.run("return document.querySelector('.verdict').getBoundingClientRect().top") < 200
    log = page.call("POST", "/se/log", type="browser")
    assert [entry for entry in log if entry["level"] == "SEVERE"] == []


def test_click_on_a_cell_shows_requirement_request_and_answer(page: Browser) -> None:
    page.click("[data-filter=bad]")
    page.click(".row.check .s-failed")
    text = page.run("return document.querySelector('dialog[open]').innerText")
    for words in (
        "rest.infer.id_echo",
        "An id comes back.",
        "inference_rest.md",
        "curl -X POST http://h/v2",
        "<b>oops</b>",
    ):
        assert words in text
    assert page.run("return document.querySelectorAll('dialog b').length") == 0, "an answer's markup stays text"
    page.click("dialog .close")
    assert page.run("return document.querySelector('dialog[open]')") is None


def test_filters_narrow_the_matrix(page: Browser) -> None:
    page.click("[data-filter=bad]")
    bad = visible(page, ".row.check")
    page.click("[data-filter=differs]")
    differing = visible(page, ".row.check")
    assert bad == 3
    assert differing == 0


def test_page_is_painted_and_fits_its_window(page: Browser) -> None:
    image = matplotlib.image.imread(io.BytesIO(page.screenshot()), format="png")
    assert image.shape[1] >= 1100
    assert float(np.std(image)) > 0.05, "not an empty page"
    assert page.run("return document.documentElement.scrollWidth <= window.innerWidth")
    assert visible(page, "svg.plot") == 2
