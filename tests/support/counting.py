"""A fact type that is not built in, as a person would write it into a file."""

from pathlib import Path

COUNTING = """
name: counting
meaning: how many there are
definition: 'how many of one kind of thing there are. Form: "There are two squares."'
colour: {light: "#0f766e", dark: "#5eead4"}
hot_keys: zxcv
examples:
  - segment: Two cats sleep on a bed.
    facts: {existence: [There are cats., There is a bed.], counting: [There are two cats.]}
"""


def write_counting(folder: Path) -> str:
    """Write the file; returns its path."""
    path = folder / "counting.yaml"
    path.write_text(COUNTING, encoding="utf-8")
    return str(path)
