"""The explorer in a real browser: `make test-browser` installs what it needs."""

import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from iterdiff.explore.server import ADDRESS, command, environment
from iterdiff.study import report
from iterdiff.study.catalog import load_study
from iterdiff.study.run import run

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="`make test-browser` installs Playwright, and runs this"
)
pytest.importorskip("streamlit", reason="the extra `explore` is not installed")

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), "")
pytestmark = pytest.mark.skipif(
    not BROWSER, reason="no browser: `make test-browser` installs Debian's chromium, and runs this"
)

WAIT_MS = 120_000
"""Longest wait for the page, which compiles programs when it is first opened."""

FOLLOWS_SECONDS = 0.3
"""How soon a curve follows a slider once the programs are compiled."""

WATCH_PEAK = r"""() => {
  const peak = () => /peak \S+ at (\d+)/.exec(
    document.querySelector(".js-plotly-plot").textContent)?.[1];
  let pressed = 0, last = peak();
  window.followed = [];
  document.addEventListener("keydown", () => { pressed = performance.now(); }, true);
  new MutationObserver(() => {
    if (peak() === last) return;
    last = peak();
    window.followed.push((performance.now() - pressed) / 1000);
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
"""Makes a page note the seconds from each key press to the moved peak."""

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 400, "height": 850}


@pytest.fixture(scope="module")
def server():
    """The address of a running explorer."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        port = probe.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    program = subprocess.Popen(command(None, port, browser=False), env=environment(), **quiet)
    address = f"http://{ADDRESS}:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health", timeout=1)
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        program.terminate()
        program.wait()


@pytest.fixture(scope="module")
def browser():
    """A headless browser."""
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def opened(browser, server):
    """Open a page of the explorer; close all pages at the end."""
    pages = []

    def open_page(query="", size=DESKTOP, scheme="light"):
        page = browser.new_page(viewport=size, color_scheme=scheme)
        page.asked, page.errors = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        pages.append(page)
        page.goto(f"{server}/{query}")
        page.set_default_timeout(WAIT_MS)
        page.wait_for_selector(".js-plotly-plot .main-svg", timeout=WAIT_MS)
        settled(page)
        return page

    yield open_page
    for page in pages:
        page.close()


def settled(page):
    """Wait until Streamlit has drawn everything."""
    page.wait_for_selector('[data-testid="stStatusWidget"]', state="hidden")
    page.wait_for_timeout(300)


def peak(page):
    """Return where the marked peak of the first figure is; 0 without one."""
    found = re.search(r"peak \S+ at (\d+)", page.locator(".js-plotly-plot").first.inner_text())
    return int(found[1]) if found else 0


def has_peak(page, expected):
    """Return whether the first figure marks its peak there, now or soon."""
    for _ in range(200):
        if peak(page) == expected:
            return True
        page.wait_for_timeout(50)
    return False


def picture(page, name):
    """Store a screenshot, for people to look at, if a folder is given."""
    folder = os.environ.get("ITERDIFF_SCREENSHOTS")
    if folder:
        size = page.viewport_size
        page.set_viewport_size({**size, "height": 3000})  # the page scrolls inside the window
        page.wait_for_timeout(1500)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))
        page.set_viewport_size(size)


def press(page, label, key, times=1):
    """Move a slider by the keyboard."""
    named = page.get_by_text(label, exact=True)
    slider = page.locator('[data-testid="stSlider"]').filter(has=named).get_by_role("slider")
    slider.focus()
    for _ in range(times):
        slider.press(key)


def test_nothing_is_loaded_from_elsewhere(opened, server):
    page = opened()
    picture(page, "desktop")
    assert page.asked and all(url.startswith((server, "data:", "blob:")) for url in page.asked)
    assert page.errors == []


def test_the_peak_follows_a_slider_and_the_address_reproduces_it(opened):
    page = opened("?step_size=0.5&theta=0.2&x0=1")
    assert has_peak(page, 9)  # t rho**(t - 1) has its largest value next to -1 / ln(0.9) = 9.5
    press(page, "θ", "ArrowLeft", 5)
    page.wait_for_url(re.compile("theta=0.15"))
    assert has_peak(page, 13)  # -1 / ln(1 - 0.075) = 12.8
    again = opened("?" + page.url.partition("?")[2], scheme="dark")
    assert has_peak(again, 13)
    picture(again, "dark")
    again.close()
    page.evaluate(WATCH_PEAK)
    for _ in range(8):
        before = len(page.evaluate("window.followed"))
        press(page, "θ", "ArrowLeft", 1)
        page.wait_for_function(f"window.followed.length > {before}", polling=100)
        page.wait_for_timeout(1500)  # until the other figures stand, too
    seconds = page.evaluate("window.followed")
    print("seconds until the curve followed:", [round(s, 3) for s in seconds])
    assert min(seconds) < FOLLOWS_SECONDS


def test_a_table_is_uploaded_and_a_bad_one_explained(opened, tmp_path):
    page = opened("?problem=curse-ridge&steps=20")
    page.get_by_role("combobox", name="table", exact=False).first.click()
    page.get_by_role("option", name="upload").click()
    page.get_by_text("Choose a CSV file").first.wait_for()
    good, bad = tmp_path / "good <b>.csv", tmp_path / "bad.csv"
    good.write_text("a,b,y\n1,2,3\n2,1,5\n4,4,1\n0,3,2\n")
    bad.write_text("a,b,y\n1,2,3\nred,1,5\n")
    upload = page.locator('input[type="file"]')
    upload.set_input_files(str(good))
    page.get_by_text("4 rows, 2 features").first.wait_for()
    settled(page)
    picture(page, "table")
    upload.set_input_files(str(bad))
    page.get_by_text("line 3, column").first.wait_for()
    picture(page, "bad-table")


def test_it_fits_a_phone(opened):
    page = opened("?steps=100", size=PHONE)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= PHONE["width"]
    picture(page, "phone")
    plot = page.locator(".js-plotly-plot").first.bounding_box()
    assert plot["width"] > 300


def test_the_report_shows_values_and_has_switches(browser, tmp_path):
    study = load_study("fixed-point", steps=100, title="</script><b>mine</b>")
    path = tmp_path / "r.html"
    path.write_text(report(run(study)), encoding="utf-8")
    page = browser.new_page(viewport=PHONE, color_scheme="dark")
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    assert page.inner_text("h1") == "</script><b>mine</b>"
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert page.locator("#plot0 polyline").count() == 3  # unrolled, implicit, the closed form
    page.get_by_label("implicit", exact=True).uncheck()
    assert page.locator("#plot0 polyline").count() == 2
    before = page.inner_html("#plot1")
    page.get_by_label("logarithmic errors").uncheck()
    assert page.inner_html("#plot1") != before
    page.locator("#plot0").scroll_into_view_if_needed()
    box = page.locator("#plot0").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert re.match(r"iteration \d+\nclosed form", page.inner_text("#hover"))
    assert asked == [path.as_uri()] and errors == []
    picture(page, "report-phone")
    page.close()
