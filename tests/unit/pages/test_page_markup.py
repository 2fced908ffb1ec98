"""All pages by their markup: labels, headings, keyboard, phone. What needs a browser is in test_page_browser.py."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from support.page_markup import find_barriers, read_markup, style_of
from support.sample_pages import PAGES

Build = Callable[[str], str]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A page by its name, made once."""
    return cache(lambda name: PAGES[name](tmp_path_factory.mktemp(name)))


@pytest.mark.parametrize("name", PAGES)
def test_nothing_stands_in_the_way_of_phone_keyboard_or_screen_reader(build: Build, name: str) -> None:
    assert find_barriers(build(name)) == []


@pytest.mark.parametrize("name", PAGES)
def test_the_shared_style_sheet_comes_first(repository: Path, build: Build, name: str) -> None:
    base = (repository / "fgaif_ray/pages/templates/base.css").read_text().strip()
    assert base in build(name)


@pytest.mark.parametrize("name", PAGES)
def test_focus_can_be_seen(build: Build, name: str) -> None:
    assert ":focus-visible { outline: 2px solid" in style_of(build(name))


@pytest.mark.parametrize("name", ["report", "audit", "experiment"])
def test_the_first_link_skips_what_every_visit_would_tab_through(build: Build, name: str) -> None:
    first = next(one for one in read_markup(build(name)) if one.tag == "a")
    assert first.classes == {"skip"} and first.attributes["href"].startswith("#")


@pytest.mark.parametrize(
    ("markup", "words"),
    [
        ("<input type=text id=a>", "a field has no label"),
        ("<button><i></i></button>", "a button has no words"),
        ('<img src="data:">', "an image has no words"),
        ("<h3>deep</h3>", "h3 follows h1"),
        ('<a href="#away">x</a>', "refers to away"),
        ('<style>.box { overflow-x: auto; }</style><div class="box"></div>', "no key leads into it"),
        ('<p id="a"></p><p id="a"></p>', "two elements have the id a"),
        ("<table><tr><th>x</th></tr></table>", "a head of a table"),
    ],
)
def test_what_stands_in_the_way_is_found(markup: str, words: str) -> None:
    page = (
        '<html lang="en"><head><title>T</title><meta name="viewport" content="width=device-width">'
        f'<meta name="color-scheme" content="light dark"></head><body><main><h1>T</h1>{markup}</main></body></html>'
    )
    barriers = find_barriers(page)
    assert len([one for one in barriers if words in one]) == 1
