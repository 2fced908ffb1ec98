"""Pictures of the pages that people see, taken in a real browser: `make screenshots` puts them into docs/images/.

Otherwise they go to artifacts/, or where ARTIFACTS says. REPORT names the page of a real run, to be taken instead of a
small one.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from support.browser import Browser, open_browser
from support.local_gateway import WEIGHTS, LocalScorer, local_gateway, served
from support.report_run import write_examples, write_run

from fgaif_ray.report.page import build_report
from fgaif_ray.rewards.composition import RewardOptions

WIDTH, HEIGHT = 1280, 900
COLOURS = 128
LARGEST = 200_000
"""Bytes of a picture in the repository."""


@pytest.fixture(scope="module")
def folder(repository: Path) -> Path:
    folder = Path(os.environ.get("ARTIFACTS", repository / "artifacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        browser.resize(WIDTH, HEIGHT)
        browser.prefer("light")
        yield browser


def keep(browser: Browser, path: Path) -> None:
    """A picture of what is seen, small enough for the repository."""
    browser.screenshot(path)
    with Image.open(path) as taken:
        picture = taken.convert("RGB").quantize(COLOURS)
    picture.save(path, optimize=True)
    assert picture.size == (WIDTH, HEIGHT)
    assert len(picture.getcolors() or []) > 8  # a page, not an empty screen
    assert path.stat().st_size < LARGEST


def test_of_the_playground(browser: Browser, folder: Path, tmp_path: Path) -> None:
    with served(local_gateway(LocalScorer(tmp_path), RewardOptions(weights=WEIGHTS), token=None)) as url:
        browser.open(f"{url}/playground")
        browser.click("#examples button:nth-child(2)")
        browser.wait_for("!document.getElementById('score').disabled")
        browser.click("#score")
        browser.wait_for("!document.getElementById('result').hidden && !document.getElementById('score').disabled")
        keep(browser, folder / "playground.png")
        browser.open("about:blank")


def test_of_a_report(browser: Browser, folder: Path, tmp_path: Path) -> None:
    if named := os.environ.get("REPORT"):
        page = Path(named).resolve()
    else:
        write_run(tmp_path, images=8)
        write_examples(tmp_path, count=3, images=8, extremes=1)
        page = tmp_path / "report.html"
        page.write_text(build_report(str(tmp_path)))
    browser.open(page)
    keep(browser, folder / "report.png")
