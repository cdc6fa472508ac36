"""The report in headless Chromium, driven through WebDriver: it renders, filters and shows evidence."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import matplotlib.image
import numpy as np
import pytest
from pypdf import PdfReader

from harness.results.history import trends
from harness.results.records import SampleBatch
from harness.results.runstore import RunStore, read_run
from reports.site import site
from reports.write import write_reports
from tests.helpers import free_port, tool, wait_until
from tests.records import load_result
from tests.reports.test_reports import cluster_run, directory  # noqa: F401 - a fixture

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

    def open(self, path: Path) -> None:
        self.call("POST", "/url", url=f"file://{path}")

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.call("POST", "/goog/cdp/execute", cmd=command, params=parameters)

    def press(self, key: str) -> None:
        keys = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self.call("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": keys}])

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
    browser.open(directory / "report.html")
    return browser


@pytest.fixture
def dark(browser: Browser) -> Iterator[None]:
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.devtools("Emulation.setEmulatedMedia", features=[feature])
    yield
    browser.devtools("Emulation.setEmulatedMedia", features=[])


@pytest.fixture
def phone(browser: Browser) -> Iterator[None]:
    browser.devtools("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    yield
    browser.devtools("Emulation.clearDeviceMetricsOverride")


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core's script."""
    folder = tmp_path_factory.mktemp("axe")
    subprocess.run([tool("npm"), "pack", "--silent", "axe-core@4.10.3"], cwd=folder, check=True, timeout=120)
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


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
    assert visible(page, "svg.plot") == 3


def all_pages(directory: Path, tmp_path: Path) -> list[Path]:  # noqa: F811
    """A report of conformance and load, one of suites on a cluster and a comparison, and a site of both."""
    cluster_run(tmp_path / "cluster")
    write_reports(tmp_path / "cluster")
    runs = [read_run(directory), read_run(tmp_path / "cluster")]
    for name, content in site(runs, trends(runs), ["one that cannot be read"], "Nightly runs").items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [directory / "report.html", tmp_path / "cluster" / "report.html", tmp_path / "site" / "index.html"]


def serious(browser: Browser, axe: str) -> list[str]:
    """What axe-core finds that keeps somebody from using the page."""
    browser.run("for (const node of document.querySelectorAll('details')) node.open = true;")
    browser.run(axe)
    browser.run("window.found = null; axe.run().then(result => { window.found = result.violations; });")
    wait_until(lambda: browser.run("return window.found !== null"), 30, "axe")
    violations = browser.run("return window.found.map(v => [v.impact, v.id, v.nodes.map(n => n.html).slice(0, 3)])")
    return [f"{rule} ({impact}): {nodes}" for impact, rule, nodes in violations if impact in ("serious", "critical")]


def test_axe_finds_nothing_serious_on_light_pages(
    browser: Browser,
    axe: str,
    directory: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    for path in all_pages(directory, tmp_path):
        browser.open(path)
        assert serious(browser, axe) == [], path
    browser.open(directory / "report.html")
    browser.run("document.querySelector('[data-check]').click()")
    wait_until(lambda: browser.run("return document.querySelector('dialog[open]') !== null"), 5, "the dialog")
    assert serious(browser, axe) == [], "with the evidence open"


def test_axe_finds_nothing_serious_on_dark_pages(
    browser: Browser,
    dark: None,
    axe: str,
    directory: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    for path in all_pages(directory, tmp_path):
        browser.open(path)
        assert serious(browser, axe) == [], path


def test_axe_notices(browser: Browser, axe: str, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(
        "<title>x</title><p style='color:#999;background:#aaa'>text</p><img src='data:,'>"
    )
    browser.open(tmp_path / "bad.html")
    assert {"color-contrast", "image-alt"} <= {text.split()[0] for text in serious(browser, axe)}


def test_dark_page_is_dark_and_so_are_its_plots(browser: Browser, dark: None, page: Browser) -> None:
    image = matplotlib.image.imread(io.BytesIO(page.screenshot()), format="png")
    assert float(image[..., :3].mean()) < 0.25
    page.run("document.querySelector('svg.plot').scrollIntoView()")
    image = matplotlib.image.imread(io.BytesIO(page.screenshot()), format="png")
    assert float(image[..., :3].mean()) < 0.25, "a plot with a light ground"
    label = page.run("return getComputedStyle(document.querySelector('svg.plot text')).fill")
    assert min(int(part) for part in re.findall(r"\d+", label)[:3]) > 130, "its words can be read"


def test_phone_shows_the_page_without_sideways_scrolling(browser: Browser, phone: None, page: Browser) -> None:
    assert page.run("return window.innerWidth") == 390
    assert page.run("return document.documentElement.scrollWidth") == 390
    sizes = page.run(
        "return [...document.querySelectorAll('svg.plot text, p, td, li')].filter(e => e.checkVisibility())"
        ".map(e => e.getBoundingClientRect().height).filter(h => h > 0)"
    )
    assert min(sizes) > 6.5, "nothing is too small to read"
    plot = page.run("return document.querySelector('svg.plot').getBoundingClientRect().width")
    assert plot >= 540, "a plot is scrolled, not shrunk"


def test_keyboard_reaches_everything(page: Browser) -> None:
    tab, enter, escape = "\ue004", "\ue007", "\ue00c"
    seen = []
    for _ in range(40):
        page.press(tab)
        seen.append(page.run("const e = document.activeElement; return e.tagName + ' ' + (e.dataset.check ?? '')"))
        if page.run("return document.activeElement.matches('.row.check button, td button')"):
            break
    assert any(item.startswith("A ") for item in seen), "the contents"
    assert page.run("return document.activeElement.matches('button[data-check]')"), seen
    outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "where one is can be seen"
    page.press(enter)
    wait_until(lambda: page.run("return document.querySelector('dialog[open]') !== null"), 5, "the dialog")
    page.press(escape)
    wait_until(lambda: page.run("return document.querySelector('dialog[open]') === null"), 5, "its end")
    assert page.run("return document.activeElement.matches('button[data-check]')"), "focus goes back to where it was"


def test_paper_shows_what_is_folded_and_is_light(browser: Browser, dark: None, page: Browser) -> None:
    content = base64.b64decode(page.call("POST", "/print", background=True))
    pages = PdfReader(io.BytesIO(content)).pages
    text = "\n".join(item.extract_text() for item in pages)
    assert 1 <= len(pages) < 12
    for words in (
        "Failed",
        "rest.infer.id_echo",
        "An id comes back.",
        "latency from the due time",
        "How this was measured",
    ):
        assert words in text, words
    assert "all checks" not in text, "buttons have no place on paper"
    assert page.run("return document.querySelectorAll('details[open]').length") <= 1, "folded again"


def test_long_stage_with_many_errors_makes_a_small_page(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run", "hour", seed=1)
    count = 300_000
    due = np.arange(count, dtype=np.int64) * 12_000_000
    done = due + (np.random.default_rng(1).exponential(0.01, count) * 1e9).astype(np.int64)
    errors = (np.arange(count) % 3 == 0).astype(np.int16)
    status = np.full(count, 200, np.int32)
    store.add(load_result(samples=store.samples_name("svc", "1"), duration_s=3600.0, requests=count, errors=100_000))
    store.add(SampleBatch("svc", "1", due, due, due, done, done, status, due, errors, ("", "timeout")))
    store.finish(1)
    store.close()
    write_reports(store.directory)
    page = (store.directory / "report.html").read_text()
    assert len(page) < 500_000
    assert "<td>timeout</td>" in page
    assert "33.3 %" in page
