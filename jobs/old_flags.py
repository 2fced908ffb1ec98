"""Flags that have become commands: for one release they still work, and say which command to use."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class OldFlag:
    """A flag of a command that calls another one.

    Example: ``OldFlag("--audit", "audit draw", values=1)``: `label --audit 20` is `audit draw 20`.
    """

    flag: str
    command: str
    """Words that take the place of the old command."""
    values: float = 0
    """Words after the flag that go with it, at most."""
    after: str = ""
    """Further words of the new command, behind the values."""


def _plan(stage: str = "") -> OldFlag:
    return OldFlag("--plan", "plan", after=stage)


OLD_FLAGS: Final[Mapping[str, tuple[OldFlag, ...]]] = {
    "pipeline": (_plan(),),
    "sample": (_plan("sample"),),
    "label": (
        OldFlag("--audit", "audit draw", values=1),
        OldFlag("--audit-import", "audit import", values=float("inf")),
        OldFlag("--calibrate", "calibrate", values=1),
        _plan("label"),
    ),
    "train-rewards": (_plan("train-rewards"),),
    "serve-rewards": (_plan("serve-rewards"),),
    "align": (OldFlag("--export-merged", "export merged", values=1), _plan("align")),
    "evaluate": (
        OldFlag("--benchmarks", "benchmark", values=1),
        OldFlag("--serve-command", "export serve-command"),
        _plan("evaluate"),
    ),
}


def replace_old_flag(command: str, arguments: list[str]) -> list[str]:
    """The words of a command line, with the command that an old flag stands for in place of the one it was given to."""
    for old in OLD_FLAGS.get(command, ()):
        for at, word in enumerate(arguments):
            flag, separator, value = word.partition("=")
            if flag != old.flag:
                continue
            values = [value] if separator else []
            rest = arguments[at + 1 :]
            while rest and len(values) < old.values and not rest[0].startswith("--"):
                values.append(rest.pop(0))
            print(f"fgaif {command} {old.flag} is now `fgaif {old.command}` and will go.", file=sys.stderr)
            return [*old.command.split(), *values, *old.after.split(), *_repeated([*arguments[:at], *rest])]
    return [command, *arguments]


def _repeated(arguments: list[str]) -> list[str]:
    """`--answers A B`, which went with `--benchmarks`, as `--answers A --answers B`."""
    words: list[str] = []
    of_answers = False
    for word in arguments:
        if word.startswith("--"):
            of_answers = word == "--answers"
        elif of_answers and words[-1] != "--answers":
            words.append("--answers")
        words.append(word)
    return words
