"""Quotes and brackets that several segments share: such segments stay or go together."""

from typing import Final

_PAIRS: Final = {")": "(", "]": "[", "}": "{", "\u201d": "\u201c", "\u00bb": "\u00ab"}
_SAME: Final = ('"', "**", "`")
"""Marks that open and close alike."""


def is_balanced(text: str) -> bool:
    """Tell whether every quote and bracket that a text opens is closed in it.

    What closes without having been opened ("a)" of a list, a smiley) counts as nothing, and so does a straight quote
    after a digit, which means inches.
    """
    opened: list[str] = []
    place = 0
    while place < len(text):
        mark = next((one for one in _SAME if text.startswith(one, place)), text[place])
        if mark in _SAME:
            if opened and opened[-1] == mark:
                opened.pop()
            elif not (mark == '"' and text[place - 1 : place].isdigit()):
                opened.append(mark)
        elif mark in _PAIRS.values():
            opened.append(mark)
        elif mark in _PAIRS and opened and opened[-1] == _PAIRS[mark]:
            opened.pop()
        place += len(mark)
    return not opened


def ends_paragraph(text: str) -> bool:
    """Tell whether a line ends with the text; a mark that is not closed by then was none."""
    return "\n" in text[len(text.rstrip()) :]
