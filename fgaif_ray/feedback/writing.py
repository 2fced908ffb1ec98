"""Writing systems of texts, by the names of their letters.

They reveal an answer in another language if its letters differ, such as Chinese about an English text.
"""

import unicodedata
from collections import Counter
from typing import Final

LATIN: Final = "LATIN"
_JAPANESE: Final = {"CJK": "CJK", "HIRAGANA": "CJK", "KATAKANA": "CJK", "BOPOMOFO": "CJK"}
"""Written in one text."""
_FORMS: Final = frozenset({"FULLWIDTH", "HALFWIDTH", "MATHEMATICAL", "MODIFIER"})


def writing_systems(text: str) -> Counter[str]:
    """Count the letters of a text by writing system.

    Example:
        >>> writing_systems("a 犬 и 2")
        Counter({'LATIN': 1, 'CJK': 1, 'CYRILLIC': 1})
    """
    if text.isascii():
        letters = sum(map(str.isalpha, text))
        return Counter({LATIN: letters}) if letters else Counter()
    words = (unicodedata.name(letter, "").split() for letter in text if letter.isalpha())
    names = (next((word for word in name if word not in _FORMS), "") for name in words)
    return Counter(_JAPANESE.get(name, name) for name in names if name)


def is_foreign(text: str, source: str) -> bool:
    """Tell whether most letters of a text belong to writing systems that its source does not use."""
    if text.isascii() and source.isascii():
        return False
    found, known = writing_systems(text), writing_systems(source)
    foreign = sum(count for name, count in found.items() if name not in known)
    return bool(known) and foreign > found.total() / 2
