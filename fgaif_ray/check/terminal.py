"""A check as text for a terminal."""

import textwrap
from typing import Final

from typer import style

from fgaif_ray.check.verdicts import reached
from fgaif_ray.serving.wire import CheckedResponse, CheckedSegment, TypeVerdict

COLOURS: Final = {"consistent": "green", "hallucinated": "red", "repeats": "yellow"}
WIDTH: Final = 100
"""Characters of a line."""
INDENT: Final = 6
"""Characters before what is said of a segment; its probability stands there."""


def terminal_lines(checked: CheckedResponse, threshold: float | None, *, colour: bool) -> list[str]:
    """The lines that show a check.

    Args:
        checked: what was found.
        threshold: that the score was compared with, if any.
        colour: whether verdicts are coloured.
    """
    lines = [*_outside(checked, colour), _head(checked, threshold, colour), ""]
    for segment in checked.segments:
        lines += _segment_lines(segment, colour)
    if not checked.segments:
        lines.append("The text states nothing.")
    if checked.trained_on:
        lines += ["", f"The reward models were trained on {_trained_on(checked)}."]
    return lines


def _outside(checked: CheckedResponse, colour: bool) -> list[str]:
    if not checked.out_of_domain:
        return []
    apart = "" if checked.domain_distance is None else f" ({checked.domain_distance:.1f} times as far as they may be)"
    warning = f"The image is unlike those that the reward models were trained on{apart}: the verdicts mean little."
    return [_coloured(warning, "yellow", colour), ""]


def _trained_on(checked: CheckedResponse) -> str:
    return printable(" and ".join(map(str, checked.trained_on)))


def _head(checked: CheckedResponse, threshold: float | None, colour: bool) -> str:
    if checked.score is None:
        return "No hallucination score: none of these reward models is about truth."
    verdict = checked.score >= 0.5 if threshold is None else reached(checked, threshold)
    line = f"hallucination score {_coloured(f'{checked.score:.2f}', 'red' if verdict else 'green', colour)}"
    if checked.expected_share is not None:
        line += f", expected share of hallucinated segments {checked.expected_share:.2f}"
    if threshold is not None:
        line += f" (threshold {threshold:g}: {'reached' if verdict else 'not reached'})"
    return line


def _segment_lines(segment: CheckedSegment, colour: bool) -> list[str]:
    verdicts = [one.verdict for one in segment.types.values()]
    shown = next((name for name in ("hallucinated", "consistent") if name in verdicts), "")
    mark = "" if segment.hallucination is None else f"{segment.hallucination:.2f}"
    said = textwrap.wrap(printable(segment.text), WIDTH - INDENT) or [""]
    of_types = " · ".join(_type(name, one, colour) for name, one in segment.types.items())
    return [
        f"{(mark if index == 0 else ''):<{INDENT}}{_coloured(line, COLOURS.get(shown), colour)}"
        for index, line in enumerate(said)
    ] + [" " * INDENT + of_types]


def _type(name: str, one: TypeVerdict, colour: bool) -> str:
    return f"{name} {_coloured(one.verdict, COLOURS.get(one.verdict), colour)} {one.probability:.2f}"


def _coloured(text: str, name: str | None, colour: bool) -> str:
    return style(text, fg=name) if colour and name is not None else text


def printable(text: str) -> str:
    """Text without the characters with which it could move the cursor or colour a terminal itself."""
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else "\ufffd" for letter in text)
