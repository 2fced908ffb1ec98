"""Segments of a response, and the sampled token that ends each of them.

Text becomes spans (``split_segments``), sampled token ids become character offsets (``fgaif_ray.token_offsets``),
and the two together give the tokens that carry the dense rewards (``segment_token_ends``). Nothing here re-tokenises
text: tokenising the decoded text again gives other ids than the sampled ones, and ends that are off by one or out of
range.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Final

import sentencex

MINIMUM_CLAUSE_WORDS: Final = 5
"""A sentence is split at ``, ; ! ?`` only where both sides keep this many words (FGAIF section 3.1, official
code)."""

MINIMUM_SEGMENT_WORDS: Final = 3
"""A sentence of fewer words ("Yes.", "Two cats!") joins its neighbour: it says too little to be judged
alone."""

ENGLISH: Final = "en"

_WORD_CHARACTER = re.compile(r"\w")
_WIDE_MARKS: Final = "\uff0c\u3001\uff1b\uff01\uff1f"
"""Comma, enumeration comma, semicolon and the two marks as Chinese and Japanese write them, without a space after."""
_CHUNK = re.compile(rf"[^\s{_WIDE_MARKS}]*[{_WIDE_MARKS}]+|[^\s{_WIDE_MARKS}]+")
_CLAUSE_MARKS: Final = (",", ";", "!", "?", "\u060c", "\u061b", "\u061f", *_WIDE_MARKS)
"""With those of Arabic."""
_CLOSING = re.compile(r"[\"'\u201d\u2019\u00bb)\]*_]+(?:\s+|$)")
"""Quotes, brackets and emphasis that end before the next sentence begins. One class of characters, since a choice
between runs of them is tried in exponentially many ways."""
_BEFORE_NUMBER = re.compile(
    r"\b(?:approx|ca|circa|no|nos|nr|fig|figs|vol|pp?|max|min|est|sec|ch|eq|ref|art)\.\s*$", re.IGNORECASE
)
"""Abbreviations that a number follows."""
LONGEST_ABBREVIATION: Final = 12
"""Characters, with the white space behind it."""
LONGEST_REMEMBERED: Final = 64
"""Characters of a word whose count is remembered."""
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_LIST_ITEM = re.compile(r"\n(?=[^\S\n]*(?:[-*\u2022]|\d+[.)])[^\S\n])")
# The sentence splitter aborts on multi-byte white space before an initial and takes no lone surrogates.
_UNSAFE_FOR_SPLITTER = re.compile(r"[^\S\x00-\x7f]|[\ud800-\udfff]")


@dataclass(frozen=True)
class Span:
    """Characters ``[start, end)`` of a text.

    Example: in "A cat. A dog sits." the span ``Span(7, 18)`` is "A dog sits.".
    """

    start: int
    end: int


def split_segments(text: str, language: str = ENGLISH) -> list[Span]:
    """Split a response into segments, which the paper calls sub-sentences (FGAIF section 3.1).

    Sentences and list items first; then a split after a word that ends in ``, ; ! ?`` when the piece before
    it has at least ``MINIMUM_CLAUSE_WORDS`` words and as many remain; then pieces of fewer than
    ``MINIMUM_SEGMENT_WORDS`` words are merged into the next piece (the last one into the previous).

    Args:
        text: any string.
        language: ISO 639 code of the language whose abbreviations do not end a sentence (``data.language``).

    Returns:
        Contiguous spans that cover the whole text; white space between two segments belongs to the
        first. Every span holds a word character unless the text has none. Empty text gives no span.
    """
    pieces = []
    for start, end in _sentences(text, language):
        pieces.extend(_clauses(text, start, end))
    pieces = _merge_wordless(text, pieces)
    return [Span(start, end) for start, end in _merge_short(text, pieces)]


def segment_token_ends(spans: Sequence[Span], offsets: Sequence[tuple[int, int]], text: str) -> list[int]:
    """Return the index of the token that holds the last non-space character of each span.

    Two spans may end on one token (a token such as "." + "No"): their rewards are to be added.

    Args:
        spans: segments of ``text``, in order.
        offsets: ``token_offsets`` of the ids that decode to ``text``, ``[response_tokens]``.
        text: the decoded response.

    Returns:
        ``[segments]`` non-decreasing indices into ``offsets``. A span of white space alone ends at its last
        character.

    Raises:
        ValueError: the offsets do not cover the spans, so they belong to another text.
    """
    ends = [end for _, end in offsets]
    indices = []
    for span in spans:
        content_end = span.start + len(text[span.start : span.end].rstrip())
        last_character = (content_end if content_end > span.start else span.end) - 1
        index = bisect_right(ends, last_character)
        if index == len(ends):
            raise ValueError(f"token offsets end at character {ends[-1] if ends else 0}, but a span ends at {span.end}")
        indices.append(index)
    return indices


def has_words(text: str) -> bool:
    """Tell whether the text holds a letter, a digit or another word character."""
    return _WORD_CHARACTER.search(text) is not None


def _sentences(text: str, language: str) -> list[tuple[int, int]]:
    safe = _UNSAFE_FOR_SPLITTER.sub(lambda match: " " if match[0].isspace() else "?", text)
    bounds = {match.end() for match in _LIST_ITEM.finditer(text)}
    position = 0
    for sentence in sentencex.segment(language, safe):
        position += len(sentence)
        bounds.add(_end_of_sentence(text, position))
    return list(pairwise([0, *sorted(bound for bound in bounds if not _is_before_number(text, bound))]))


def _end_of_sentence(text: str, position: int) -> int:
    """Where a sentence ends that the splitter has ended here: behind what closes with it."""
    closing = _CLOSING.match(text, position)
    return closing.end() if closing else position


def _is_before_number(text: str, position: int) -> bool:
    """Whether what looks like an end of a sentence is an abbreviation before a number, as in "approx. 4 kg"."""
    return (
        text[position : position + 1].isdigit()
        and _BEFORE_NUMBER.search(text, max(0, position - LONGEST_ABBREVIATION), position) is not None
    )


def _words_in(chunk: str) -> int:
    """Words of a text without white space: scripts written without spaces count a word per character."""
    return _words_in_short(chunk) if len(chunk) <= LONGEST_REMEMBERED else _words_in_long(chunk)


def _words_in_long(chunk: str) -> int:
    return max(len(_CJK.findall(chunk)), 1 if has_words(chunk) else 0)


_words_in_short = lru_cache(maxsize=4096)(_words_in_long)


def _count_words(text: str) -> int:
    return sum(_words_in(chunk) for chunk in _CHUNK.findall(text))


class _WordCounter:
    """The words of any part of a text, each found without reading the part again."""

    def __init__(self, text: str) -> None:
        chunks = [match.span() for match in _CHUNK.finditer(text)]
        self._starts = [start for start, _ in chunks]
        self._ends = [end for _, end in chunks]
        self._cjk = [match.start() for match in _CJK.finditer(text)]
        self._word_characters = [match.start() for match in _WORD_CHARACTER.finditer(text)]
        self._until = [0, *accumulate(self._words(start, end) for start, end in chunks)]

    def _words(self, start: int, end: int) -> int:
        """Words of a part without white space."""
        cjk = bisect_left(self._cjk, end) - bisect_left(self._cjk, start)
        first = bisect_left(self._word_characters, start)
        has_word = first < len(self._word_characters) and self._word_characters[first] < end
        return max(cjk, int(has_word))

    def count(self, start: int, end: int) -> int:
        """What `_count_words` counts in ``text[start:end]``."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end) - 1
        if first > last:
            return 0
        if first == last:
            return self._words(max(start, self._starts[first]), min(end, self._ends[first]))
        whole = self._until[last] - self._until[first + 1]
        begun = self._words(max(start, self._starts[first]), self._ends[first])
        return begun + whole + self._words(self._starts[last], min(end, self._ends[last]))


def _clauses(text: str, start: int, end: int) -> list[tuple[int, int]]:
    remaining = _count_words(text[start:end])
    before = 0
    pieces = []
    chunks = list(_CHUNK.finditer(text, start, end))
    for chunk, following in pairwise(chunks):
        words = _words_in(chunk[0])
        before += words
        remaining -= words
        if chunk[0].endswith(_CLAUSE_MARKS) and min(before, remaining) >= MINIMUM_CLAUSE_WORDS:
            pieces.append((start, following.start()))
            start = following.start()
            before = 0
    return [*pieces, (start, end)]


def _merge_wordless(text: str, pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Give pieces without a word (line breaks, "...") to the piece before, or after where none is before."""
    merged: list[tuple[int, int]] = []
    for start, end in pieces:
        if merged and not (has_words(text[start:end]) and has_words(text[merged[-1][0] : merged[-1][1]])):
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def _merge_short(text: str, pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    open_start: int | None = None  # where a short piece that waits for the next one begins
    counter: _WordCounter | None = None  # pieces that cut a word do not make more words of it, however many they are
    for start, end in pieces:
        if open_start is None:
            words = _count_words(text[start:end])
        else:
            counter = counter or _WordCounter(text)
            start, words = open_start, counter.count(open_start, end)
        open_start = None
        if words < MINIMUM_SEGMENT_WORDS:
            open_start = start
        else:
            merged.append((start, end))
    if open_start is not None:
        last_start = merged.pop()[0] if merged else open_start
        merged.append((last_start, len(text)))
    return merged
