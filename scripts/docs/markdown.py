"""Markdown of the repository, as GitHub reads it, turned into what Python-Markdown reads alike."""

import re
from collections.abc import Callable, Iterator

_FENCE = re.compile(r"^\s*(```+|~~~+)")
_ITEM = re.compile(r"^(\s*)([*+-]|\d+[.)])(\s+)")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"`[^`]*`")
STEP = 4
"""Spaces by which Python-Markdown wants what belongs to an item of a list."""


def indent_lists(text: str) -> str:
    """Indent what belongs to an item of a list by four spaces a level, and begin every list after an empty line.

    GitHub takes any text that begins below an item's own as part of it.
    """
    return "\n".join(_indented(text.split("\n")))


def _indented(lines: list[str]) -> Iterator[str]:
    columns: list[int] = []  # where the text of each open item begins
    fence: str | None = None
    shift = 0  # of the lines of a code block
    before = ""
    of_item = True  # whether the paragraph that goes on is an item's first
    for line in lines:
        width = len(line) - len(line.lstrip(" "))
        mark = _FENCE.match(line)
        if fence is not None:
            yield " " * max(width + shift, 0) + line.lstrip(" ") if line.strip() else line
            fence = None if mark and mark[1].startswith(fence) else fence
            before, of_item = line, False
            continue
        if line.strip():
            item = _ITEM.match(line)
            if item or mark or not before.strip():  # else a lazy line of the paragraph before
                while columns and width < columns[-1]:
                    columns.pop()
            depth = len(columns)
            inside = width - (columns[-1] if columns else 0)
            if item and before.strip() and not of_item:
                yield ""
            if item or not before.strip():
                of_item = bool(item)
            shifted = STEP * depth + max(inside, 0)
            if mark:
                fence, shift = mark[1], shifted - width
            yield " " * shifted + line.lstrip(" ")
            if item:
                columns.append(item.end())
        else:
            yield line
        before = line


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Change the lines of a text that are not in code blocks."""
    found: list[str] = []
    fence: str | None = None
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        found.append(line if mark or fence else change(line))
        if mark:
            fence = mark[1] if fence is None else None if mark[1].startswith(fence) else fence
    return "\n".join(found)


def change_links(text: str, change: Callable[[str, str], tuple[str, str]]) -> str:
    """Put other texts and targets into all links and pictures outside of code blocks.

    Args:
        text: Markdown.
        change: from text and target to those that take their place.
    """

    def changed(link: re.Match[str]) -> str:
        words, target = change(link[2], link[3])
        return f"{link[1]}[{words}]({target})"

    return outside_code(text, lambda line: _LINK.sub(changed, line))


def plain_pipes(text: str) -> str:
    """Take the backslash from pipes in code in tables: GitHub needs it there, Python-Markdown shows it."""

    def changed(line: str) -> str:
        return _CODE.sub(lambda code: code[0].replace("\\|", "|"), line) if line.startswith("|") else line

    return outside_code(text, changed)
