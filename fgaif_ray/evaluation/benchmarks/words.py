"""Words of a text and their singular forms, with no tagger and no dictionary but the benchmark's own word list."""

import re
from collections.abc import Collection, Iterator
from typing import Final

_TOKEN: Final = re.compile(r"[^\W_]+(?:-[^\W_]+)*|[^\w\s]|_")
_IRREGULAR: Final = {
    "children": "child",
    "feet": "foot",
    "geese": "goose",
    "grandchildren": "grandchild",
    "men": "man",
    "mice": "mouse",
    "oxen": "ox",
    "people": "person",
    "teeth": "tooth",
    "women": "woman",
}


def tokens(text: str) -> list[str]:
    """Words (with their inner hyphens) and punctuation marks, one after the other; an apostrophe ends a word."""
    return _TOKEN.findall(text)


def singulars(word: str) -> Iterator[str]:
    """List the forms that a word may be the plural of, the likeliest first."""
    if word in _IRREGULAR:
        yield _IRREGULAR[word]
    if word.endswith("men") and len(word) > 3:
        yield word[:-3] + "man"
    if word.endswith("ies"):
        yield word[:-3] + "y"
    if word.endswith("ves"):
        yield word[:-3] + "f"
        yield word[:-3] + "fe"
    if re.search(r"(?:s|x|z|ch|sh|o)es$", word):
        yield word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        yield word[:-1]


def says(answer: str) -> str | None:
    """Return the Yes or No that an answer begins with, in any case; None where it begins with neither."""
    found = re.match(r"\W*(yes|no)\b", answer, re.IGNORECASE)
    return None if found is None else found[1].capitalize()


class Lexicon:
    """Finds the form of a word that a word list knows."""

    def __init__(self, words: Collection[str]) -> None:
        self._words = frozenset(words)

    def base(self, word: str) -> str:
        """Return the word itself if the list has it, else a singular that it has, else the word itself."""
        if word in self._words:
            return word
        return next((form for form in singulars(word) if form in self._words), word)
