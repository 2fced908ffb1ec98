"""All pages in a real browser, light and dark: what axe-core finds, and whether they fit the narrowest phone."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from support.accessibility import serious_findings
from support.browser import Browser, open_browser
from support.local_gateway import TOKEN, WEIGHTS, LocalScorer, local_gateway, served
from support.sample_pages import PAGES

from fgaif_ray.rewards.composition import RewardOptions

NARROW, WIDE = 360, 1280
"""CSS pixels: a small phone, a desk."""
SCORED = "!document.getElementById('result').hidden && !document.getElementById('score').disabled"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        browser.call("Page.setBypassCSP", enabled=True)  # pages allow no script but their own
        yield browser


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a page by its name, made once."""

    @cache
    def write(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        path = folder / "page.html"
        path.write_text(PAGES[name](folder), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    scorer = LocalScorer(tmp_path_factory.mktemp("rewards"))
    with served(local_gateway(scorer, RewardOptions(weights=WEIGHTS))) as url:
        yield url


def show(browser: Browser, page: Path | str, width: int, theme: str) -> None:
    browser.resize(width)
    browser.prefer(theme)
    browser.open("about:blank")
    browser.open(page)
    browser.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(
    browser: Browser, written: Callable[[str], Path], name: str, width: int, theme: str
) -> None:
    show(browser, written(name), width, theme)
    assert serious_findings(browser) == []


@pytest.mark.parametrize("name", PAGES)
def test_a_phone_shows_the_page_without_scrolling_sideways(
    browser: Browser, written: Callable[[str], Path], name: str
) -> None:
    show(browser, written(name), NARROW, "light")
    assert browser.evaluate("document.documentElement.scrollWidth") <= NARROW


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_scored_segments(browser: Browser, url: str, theme: str) -> None:
    show(browser, f"{url}/playground", NARROW, theme)
    browser.click("#examples button:nth-child(2)")
    browser.click("#token")
    browser.type_text(TOKEN)
    browser.wait_for("!document.getElementById('score').disabled")
    browser.click("#score")
    browser.wait_for(SCORED)
    assert serious_findings(browser) == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= NARROW


def test_axe_finds_nothing_serious_in_the_help_of_the_audit(browser: Browser, written: Callable[[str], Path]) -> None:
    show(browser, written("audit"), NARROW, "light")
    browser.click("#help-button")
    assert serious_findings(browser) == []


def test_axe_finds_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "wrong.html"
    path.write_text("<!doctype html><html><head><title>T</title></head><body><main><input></main></body></html>")
    show(browser, path, WIDE, "light")
    assert {"html-has-lang", "label"} <= {finding.partition(":")[0] for finding in serious_findings(browser)}
