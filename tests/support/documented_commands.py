"""The commands that the documentation names: those of its shell blocks, and those in the middle of its sentences.

A line of a block may end with a comment `# needs: GPU`, and a block may have `<!-- needs: cloud -->` above it: such
commands cannot be run here.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from support.paths import ROOT

PAGES = ("README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")))
SHELLS = ("sh", "bash", "console")
OPERATORS = {"&&", "||", ";", "|", "&"}
_FENCE = re.compile(r"^\s*```(\w*)")
_ABOVE = re.compile(r"<!-- needs: (.+?) -->")
_BESIDE = re.compile(r"#.*\bneeds: (.+)$")
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_ASSIGNMENT = re.compile(r"^[A-Z_]+=")
_PROGRAM = re.compile(r"^(fgaif|make|python3?|ray|serve|\.venv/bin/python)( |$)")


@dataclass(frozen=True)
class DocumentedCommand:
    """A simple command: a program and its words, without the assignments before it."""

    page: str
    line: int
    words: tuple[str, ...]
    needs: str | None
    """What it cannot be run without here, as the page says."""
    in_block: bool
    """Whether it is a whole command line; in a sentence words may be missing."""
    block: int = 0
    """Line at which its block begins."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"


def _logical_lines(lines: list[tuple[int, str]]) -> Iterator[tuple[int, str, str | None]]:
    """Lines of a block, each with those that continue it, its number, and what its comment says that it needs."""
    text, first, needs = "", 0, None
    for number, line in lines:
        first = first if text else number
        beside = _BESIDE.search(line)
        needs = beside[1].strip() if beside else needs
        text = text.removesuffix("\\") + " " + line if text else line
        try:
            complete = bool(shlex.split(text, comments=True)) or not text.strip()
        except ValueError:  # a quotation goes on
            complete = False
        if complete and not text.rstrip().endswith("\\"):
            yield first, text, needs
            text, needs = "", None
        elif not text.strip() or text.lstrip().startswith("#"):
            text = ""


def _simple_commands(text: str, variables: dict[str, str]) -> Iterator[tuple[str, ...]]:
    """The commands of a line, `$NAME` replaced where the page has set it; assignments are remembered."""
    for name, value in variables.items():
        text = text.replace(f"${name} ", f"{value} ")
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word not in OPERATORS:
            words.append(word)
            continue
        while words and (_ASSIGNMENT.match(words[0]) or words[0] in ("do", "export")):
            name, _, value = words.pop(0).partition("=")
            if value:
                variables[name] = value
        if words and words[0] not in ("for", "done"):
            yield tuple(words)
        words = []


def commands_in(page: str) -> Iterator[DocumentedCommand]:
    """The commands of a page, in order."""
    variables: dict[str, str] = {}
    block: list[tuple[int, str]] | None = None
    shell, above, start = False, None, 0
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if fence and block is None:
            block, shell, start = [], fence[1] in SHELLS, number
        elif fence and block is not None:
            for first, text, beside in _logical_lines(block) if shell else ():
                for words in _simple_commands(text, variables):
                    yield DocumentedCommand(page, first, words, beside or above, True, start)
            block, above = None, None
        elif block is not None:
            block.append((number, line))
        else:
            marked = _ABOVE.search(line)
            above = marked[1] if marked else above if not line.strip() else None
            for inline in _INLINE.findall(line):
                if _PROGRAM.match(inline):
                    words = tuple(shlex.split(inline.replace("[", "").replace("]", "")))
                    yield DocumentedCommand(page, number, words, None, False)


def blocks_in(page: str) -> Iterator[tuple[int, str, str]]:
    """Line, language and content of the blocks of a page."""
    block: list[str] | None = None
    start, language, indent = 0, "", 0
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if fence and block is None:
            block, start, language, indent = [], number, fence[1], len(line) - len(line.lstrip())
        elif fence and block is not None:
            yield start, language, "\n".join(block)
            block = None
        elif block is not None:
            block.append(line[indent:])


def inline_code(page: str) -> Iterator[tuple[int, str]]:
    """What stands between backticks in the sentences of a page, with its line."""
    fenced = False
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced:
            yield from ((number, inline) for inline in _INLINE.findall(line))


def makefile_recipes() -> Mapping[str, str]:
    """Targets of the Makefile with what they run."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z-]+):[^\n]*\n((?:\t[^\n]*\n)*)", text, re.MULTILINE))


def all_commands() -> list[DocumentedCommand]:
    """The commands of all pages."""
    return [command for page in PAGES for command in commands_in(page)]


def sources_of_tests() -> dict[Path, str]:
    """The text of every test file and helper."""
    return {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "tests").rglob("*.py"))}
