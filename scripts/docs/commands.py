"""The page of all commands: what `--help` says, from the same objects."""

import inspect
from collections.abc import Iterator
from typing import Any, Final

import typer

from jobs.cli import SECTIONS, app

INTRODUCTION: Final = """\
# Commands

`fgaif COMMAND` and `python -m jobs.COMMAND` are the same. Exit status: 0 done; 1 failed, with a traceback; 2 the input
has to be changed, and one sentence says how; 130 interrupted, and the same command goes on.

This page is made from the code (`jobs/`).
"""


def load_commands() -> dict[str, Any]:
    """Every command by its name, with its subcommands' names before a space: ``export merged``."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("fgaif", ["--help"], resilient_parsing=True)
    found = {}
    for name in (name for commands in SECTIONS.values() for name in commands):
        _, command, _ = group.resolve_command(context, [name])
        found[name] = command
        found |= {f"{name} {own}": below for own, below in getattr(command, "commands", {}).items()}
    return found


def options_of(name: str, command: Any) -> list[tuple[str, str]]:
    """Arguments and options with what they do, as `--help` lists them."""
    context = command.make_context(name, [], resilient_parsing=True)
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    return [(names, text) for names, text in filter(None, records) if not names.startswith("--help")]


def _help(text: str) -> str:
    """A docstring as Markdown: parts with indented lines are shown as they are."""
    parts = []
    for part in inspect.cleandoc(text.replace("\b\n", "")).split("\n\n"):
        kept = part.startswith(" ") or "\n " in part
        parts.append(f"```text\n{part}\n```" if kept else part.replace("<", "&lt;"))
    return "\n\n".join(parts)


def _lines(name: str, command: Any, depth: int) -> Iterator[str]:
    yield from (f"{'#' * depth} fgaif {name}", "", _help(command.help or ""), "")
    rows = [f"| `{names}` | {text.replace('|', '&#124;')} |" for names, text in options_of(name, command)]
    if rows:
        yield from ("| argument or option | what it does |", "|---|---|", *rows, "")


def commands_page() -> str:
    """The page, as Markdown."""
    commands = load_commands()
    lines = [INTRODUCTION]
    for title, members in SECTIONS.items():
        lines += [f"## {title or 'Seldom needed'}", ""]
        for name in members:
            lines += _lines(name, commands[name], 3)
            for own in (own for own in commands if own.startswith(f"{name} ")):
                lines += _lines(own, commands[own], 4)
    return "\n".join(lines)
