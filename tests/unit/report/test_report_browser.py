"""The report in a real browser: it fits its screens, loads nothing, and hostile text stays text."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from support.browser import Browser, open_browser
from support.report_run import HOSTILE, write_examples, write_run

from fgaif_ray.report.page import build_report

LONG = "unbroken" * 60
LARGEST = 5_000_000
"""Bytes of a report."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report whose title, settings and responses attack it, with a word wider than any screen."""
    folder = tmp_path_factory.mktemp("hostile")
    write_run(folder, images=8, before=f"{HOSTILE} {LONG}. There is a red star. \u202e desrever si sihT.")
    write_examples(folder, title=f"{HOSTILE} {LONG}", count=3, images=8, extremes=1)
    path = folder / "report.html"
    path.write_text(build_report(str(folder)))
    return path


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        browser.resize(1280)
        browser.open(page)
        yield browser


def test_hostile_text_stays_text(browser: Browser) -> None:
    assert browser.evaluate("document.scripts.length") == 0
    assert browser.evaluate("document.querySelectorAll('[onerror]').length") == 0
    assert browser.evaluate("document.title").startswith(HOSTILE)
    assert HOSTILE in browser.evaluate("document.querySelector('pre').textContent")
    assert HOSTILE in browser.evaluate("document.querySelector('#examples').textContent")


def test_the_console_has_no_error_and_nothing_is_asked_from_a_network(page: Path, browser: Browser) -> None:
    assert browser.problems == []
    assert {url for url in browser.requests if not url.startswith("data:image/")} == {page.as_uri()}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_screen_with_everything_opened(browser: Browser, tmp_path: Path, width: int, theme: str) -> None:
    browser.resize(width)
    browser.prefer(theme)
    browser.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    boxes = "[...document.querySelectorAll('.card, .tile, .note, .example, .detail')]"
    assert (
        browser.evaluate(f"{boxes}.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.innerText)")
        == []
    )
    assert browser.evaluate("[...document.images].filter(one => !(one.complete && one.naturalWidth)).length") == 0
    assert browser.evaluate("document.images.length") > 3
    browser.screenshot(tmp_path / "page.png", whole=True)
    picture = Image.open(tmp_path / "page.png").convert("L")
    assert picture.width <= width and picture.height > 2000
    assert (picture.resize((1, 1)).getpixel((0, 0)) < 100) == (theme == "dark")


def test_a_line_opens_with_the_keyboard(page: Path, browser: Browser) -> None:
    browser.open(page)
    browser.evaluate("document.querySelector('.line details:not([open]) > summary').focus()")
    browser.press("Enter")
    assert browser.evaluate("document.activeElement.parentElement.open")


def test_it_is_small(page: Path) -> None:
    assert page.stat().st_size < LARGEST / 5  # eight images without photos
