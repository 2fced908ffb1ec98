"""What can stand as a sentence of its own, and how a part of one becomes one (English, by word lists).

The lists are short on purpose: where they are unsure, a clause does not stand alone and is cut with its sentence. A
lost true clause is better than a fragment.
"""

import re
from typing import Final

CLAUSE_MARKS: Final = ",;\u060c\u061b\uff0c\u3001\uff1b"
"""Marks within a sentence at which segments end (``fgaif_ray.segments``)."""
_WIDE_MARKS: Final = "\uff0c\u3001\uff1b"
TERMINATORS: Final = ".!?\u2026\u3002\uff01\uff1f"
_CLOSERS: Final = "\"'\u201d\u2019\u00bb)]}*_`"
_TAIL: Final = re.compile(rf"[{CLAUSE_MARKS}]*\s*$")
_WORD: Final = re.compile(r"[\w'\u2019]+")

_COORDINATOR: Final = re.compile(r"\s*(?:and|but|or|so|yet|plus|while|whereas)\b\s*,?\s*", re.IGNORECASE)
"""First words that a sentence of its own does without."""
_PRONOUNS: Final = frozenset(
    {"it", "its", "they", "their", "theirs", "them", "he", "she", "his", "her", "hers", "him", "this", "that", "these"}
    | {"those", "both", "which", "who", "whose", "one"}
)
"""First words that speak of what was said just before."""
_PICTURE: Final = frozenset(
    {"image", "picture", "photo", "photograph", "scene", "painting", "illustration", "drawing", "screenshot"}
)
_DEPENDENT: Final = frozenset(
    {"which", "who", "whom", "whose", "that", "where", "when", "what", "if", "as", "because", "since", "although"}
    | {"though", "unless", "until", "while", "whereas", "after", "before", "once", "whether", "how", "why", "than"}
)
"""Words after which a verb is not the clause's own."""
_VERBS: Final = frozenset(
    {"is", "are", "was", "were", "has", "have", "had", "does", "did", "seem", "seems", "appear", "appears", "contain"}
    | {"contains", "depicts", "depict", "includes", "include", "sits", "sit", "lies", "wears", "consists", "occupies"}
    | {"isn't", "aren't", "wasn't", "weren't", "hasn't", "haven't", "doesn't", "don't", "can't", "cannot"}
)
"""Verbs that are no nouns."""
_PICTURE_VERBS: Final = frozenset({"shows", "show", "features", "feature", "displays", "captures", "presents"})
"""Verbs of pictures; elsewhere they may be nouns."""
_MODALS: Final = frozenset({"can", "could", "will", "would", "may", "might", "must", "should"})
_AFTER_MODALS: Final = frozenset(
    {"be", "see", "also", "not", "clearly", "still", "only", "have", "easily", "even", "just", "make", "notice", "find"}
)
_CONTRACTED: Final = frozenset({"there", "it", "he", "she", "here", "they", "i", "we", "you"})


def stands_alone(text: str) -> bool:
    """Tell whether a text has a subject and a verb of its own.

    Example: True for "there is a red ball", False for "and a red ball", "which is red" and "on the left of it".
    """
    words = [word.casefold().replace("\u2019", "'") for word in _WORD.findall(text)]
    for place, word in enumerate(words):
        if word in _DEPENDENT:
            return False
        if _is_verb(words, place):
            return place > 0 or _is_contracted(word)
    return False


def _is_verb(words: list[str], place: int) -> bool:
    word = words[place]
    if word in _VERBS or _is_contracted(word):
        return True
    if word in _PICTURE_VERBS:
        return place > 0 and words[place - 1] in _PICTURE
    return word in _MODALS and words[place + 1 : place + 2] != [] and words[place + 1] in _AFTER_MODALS


def _is_contracted(word: str) -> bool:
    """``there's``, ``they're``, ``I've``, ``it'll``."""
    subject, mark, _ = word.partition("'")
    return mark != "" and subject in _CONTRACTED


def refers_back(text: str) -> bool:
    """Tell whether a sentence or clause begins with a word that stands for something said before it."""
    words = [word.casefold() for word in _WORD.findall(_COORDINATOR.sub("", text, count=1) if _leads(text) else text)]
    if not words:
        return False
    first = words[0].partition("'")[0].partition("\u2019")[0]
    return first in _PRONOUNS and (len(words) < 2 or words[1] not in _PICTURE)


def _leads(text: str) -> bool:
    return _COORDINATOR.match(text) is not None


def as_sentence(clause: str) -> str | None:
    """Make a sentence of a clause that followed another one; None where it does not stand alone.

    Example: "and there is a red ball." becomes "There is a red ball."; "and a red ball." becomes None.
    """
    lead = _COORDINATOR.match(clause)
    body = clause[lead.end() :] if lead else clause.lstrip()
    return capitalised(body) if stands_alone(body) and not refers_back(body) else None


def capitalised(text: str) -> str:
    """The text with its first letter in upper case."""
    for place, character in enumerate(text):
        if character.isalpha():
            return text[:place] + character.upper() + text[place + 1 :]
        if character.isdigit():
            break
    return text


def ends_sentence(text: str) -> bool:
    """Tell whether a segment is the last one of its sentence: only a clause mark on the same line says it is not."""
    content = text.rstrip()
    return not content.endswith(tuple(CLAUSE_MARKS)) or "\n" in text[len(content) :]


def split_tail(text: str) -> tuple[str, str]:
    """Split a segment into what it says, and the clause mark and white space that can change when the next is cut."""
    found = _TAIL.search(text)
    assert found is not None  # the pattern matches the empty end
    return text[: found.start()], text[found.start() :]


def white_space(text: str) -> str:
    """The white space at the end of a text."""
    return text[len(text.rstrip()) :]


def full_stop(tail: str, last: str | None) -> str:
    """What ends a sentence whose rest was cut.

    Args:
        tail: mark and white space behind what is kept.
        last: the clause that was the sentence's end and was cut; None where the sentence went on with another one.
    """
    stop = "\u3002" if tail[:1] in tuple(_WIDE_MARKS) else "."
    if last is None:
        return stop
    content = last.rstrip()
    marks = content.rstrip(_CLOSERS)
    if marks and marks[-1] in TERMINATORS:
        return marks[-1]
    return "" if "\n" in last[len(content) :] else stop  # items of a list often end without
