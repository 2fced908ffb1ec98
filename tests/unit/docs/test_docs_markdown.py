"""Markdown as GitHub reads it becomes what the site reads alike."""

import re

import markdown
import pytest

from scripts.docs.markdown import change_links, indent_lists, plain_pipes

EXTENSIONS = ["tables", "pymdownx.superfences"]


def html(text: str) -> str:
    return re.sub(r"\s+", "", markdown.markdown(indent_lists(text), extensions=EXTENSIONS))


def test_a_list_may_follow_a_paragraph() -> None:
    assert html("Two things:\n* one\n* two") == "<p>Twothings:</p><ul><li>one</li><li>two</li></ul>"


@pytest.mark.parametrize("indent", ["  ", "   ", "    "])
def test_lists_may_be_in_lists(indent: str) -> None:
    found = html(f"* one\n{indent}* below\n* two")
    assert found == "<ul><li>one<ul><li>below</li></ul></li><li>two</li></ul>"


def test_what_stands_below_an_item_belongs_to_it() -> None:
    found = html(
        "1. **Image**: build it.\n\n   ```sh\n   docker build .\n     --tag a\n   ```\n\n   It holds packages.\n2. next"
    )
    assert found.count("<li>") == 2 and found.index("Itholdspackages") < found.index("</li>")
    assert "dockerbuild.--taga" in re.sub(r"<[^>]+>", "", found) and "```" not in found


def test_lines_of_code_keep_their_indentation() -> None:
    text = "* item\n\n  ```yaml\n  a:\n    b: 1\n  ```"
    assert indent_lists(text).splitlines()[3:5] == ["    a:", "      b: 1"]


def test_a_paragraph_after_a_list_ends_it() -> None:
    assert html("* one\n\nText.") == "<ul><li>one</li></ul><p>Text.</p>"


def test_code_and_what_looks_like_a_list_in_it_stay() -> None:
    text = "Text.\n\n```sh\n* no list\n[no](link.md)\n```"
    assert indent_lists(text) == text == change_links(text, lambda *_: ("other", "other.md"))


def test_links_and_pictures_get_other_targets() -> None:
    text = "See [docs/a.md](docs/a.md#b) and ![a picture](docs/images/b.png)."
    changed = change_links(text, lambda words, target: (words.removeprefix("docs/"), target.removeprefix("docs/")))
    assert changed == "See [a.md](a.md#b) and ![a picture](images/b.png)."


def test_pipes_in_code_of_tables_lose_their_backslash() -> None:
    assert plain_pipes("| `5..\\|429` | full |\n`a\\|b`") == "| `5..|429` | full |\n`a\\|b`"
