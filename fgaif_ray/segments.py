"""Segments of a response, and the sampled token that ends each of them.

Text becomes spans (``split_segments``), sampled token ids become character offsets (``token_offsets``), and
the two together give the tokens that carry the dense rewards (``segment_token_ends``). Nothing here
re-tokenises text: tokenising the decoded text again gives other ids than the sampled ones, and ends that
are off by one or out of range.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final, Protocol, cast

import sentencex

MINIMUM_CLAUSE_WORDS: Final = 5
"""A sentence is split at ``, ; ! ?`` only where both sides keep this many words (FGAIF section 3.1, official
code)."""

MINIMUM_SEGMENT_WORDS: Final = 3
"""A sentence of fewer words ("Yes.", "Two cats!") joins its neighbour: it says too little to be judged
alone."""

LANGUAGE: Final = "en"
"""Whose rules end a sentence."""

_WORD_CHARACTER = re.compile(r"\w")
_WIDE_MARKS: Final = "\uff0c\u3001\uff1b\uff01\uff1f"
"""Comma, enumeration comma, semicolon and the two marks as Chinese and Japanese write them, without a space after."""
_CHUNK = re.compile(rf"[^\s{_WIDE_MARKS}]*[{_WIDE_MARKS}]+|[^\s{_WIDE_MARKS}]+")
_CLAUSE_MARKS: Final = (",", ";", "!", "?", "\u060c", "\u061b", "\u061f", *_WIDE_MARKS)
"""With those of Arabic."""
_CLOSING = re.compile(r"(?:[\"'\u201d\u2019\u00bb)\]]|\*{1,3}|_{1,3})+(?:\s+|$)")
"""Quotes, brackets and emphasis that end before the next sentence begins."""
_BEFORE_NUMBER = re.compile(
    r"\b(?:approx|ca|circa|no|nos|nr|fig|figs|vol|pp?|max|min|est|sec|ch|eq|ref|art)\.\s*$", re.IGNORECASE
)
"""Abbreviations that a number follows."""
LONGEST_ABBREVIATION: Final = 12
"""Characters, with the white space behind it."""
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


class Decoder(Protocol):
    """What ``token_offsets`` needs of a tokenizer; every ``transformers`` tokenizer has it."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False, **kwargs: Any) -> str | list[str]: ...


def split_segments(text: str) -> list[Span]:
    """Split a response into segments, which the paper calls sub-sentences (FGAIF section 3.1).

    Sentences and list items first; then a split after a word that ends in ``, ; ! ?`` when the piece before
    it has at least ``MINIMUM_CLAUSE_WORDS`` words and as many remain; then pieces of fewer than
    ``MINIMUM_SEGMENT_WORDS`` words are merged into the next piece (the last one into the previous).

    Args:
        text: any string.

    Returns:
        Contiguous spans that cover the whole text; white space between two segments belongs to the
        first. Every span holds a word character unless the text has none. Empty text gives no span.
    """
    pieces = []
    for start, end in _sentences(text):
        pieces.extend(_clauses(text, start, end))
    pieces = _merge_wordless(text, pieces)
    return [Span(start, end) for start, end in _merge_short(text, pieces)]


def token_offsets(tokenizer: Decoder, token_ids: Sequence[int]) -> list[tuple[int, int]]:
    """Return the characters that each sampled token adds to the decoded response.

    The text is ``tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)``.
    A token ends where the decoding of all ids up to it stops agreeing with that text, so a character spread
    over several tokens belongs to the token that completes it, and tokens that add nothing (special tokens,
    first bytes of a character) are empty.

    Args:
        tokenizer: the tokenizer of the model that sampled the ids.
        token_ids: sampled ids, ``[response_tokens]``; they need not be the ids the text would be encoded to.

    Returns:
        ``[response_tokens]`` pairs ``(start, end)``, contiguous from 0 to the length of the text.
    """
    ids = list(token_ids)
    text = _decode(tokenizer, ids)
    # A replacement character stands for wrong or missing bytes, and how many bytes it stands for may depend
    # on all the ids before (byte-fallback decoders replace a whole run), so no window of ids can tell. Such
    # responses are rare.
    ends_of = _ends_from_first_id if "\ufffd" in text else _ends_by_window
    ends = ends_of(tokenizer, ids, text)
    return list(pairwise([0, *ends]))


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


def _sentences(text: str) -> list[tuple[int, int]]:
    safe = _UNSAFE_FOR_SPLITTER.sub(lambda match: " " if match[0].isspace() else "?", text)
    bounds = {match.end() for match in _LIST_ITEM.finditer(text)}
    position = 0
    for sentence in sentencex.segment(LANGUAGE, safe):
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


@lru_cache(maxsize=4096)
def _words_in(chunk: str) -> int:
    """Words of a text without white space: scripts written without spaces count a word per character."""
    return max(len(_CJK.findall(chunk)), 1 if has_words(chunk) else 0)


def _count_words(text: str) -> int:
    return sum(_words_in(chunk) for chunk in _CHUNK.findall(text))


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
    for start, end in pieces:
        start = start if open_start is None else open_start
        open_start = None
        if _count_words(text[start:end]) < MINIMUM_SEGMENT_WORDS:
            open_start = start
        else:
            merged.append((start, end))
    if open_start is not None:
        last_start = merged.pop()[0] if merged else open_start
        merged.append((last_start, len(text)))
    return merged


def _decode(tokenizer: Decoder, token_ids: list[int]) -> str:
    text = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return cast("str", text)  # one sequence decodes to one string


def _agreement(left: str, right: str) -> int:
    """Length of the longest common prefix."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _ends_by_window(tokenizer: Decoder, token_ids: list[int], text: str) -> list[int]:
    """End of each token, decoding only the ids since the last but one boundary that agreed with the text.

    The ids in ``[prefix, read)`` are decoded again with every new id because decoders strip a leading space
    from what they are given first; as both decodings lose it, their difference is right.
    """
    ends: list[int] = []
    prefix, read = 0, 0
    prefix_text = ""
    position = 0  # characters of the text that the ids before ``read`` stand for
    for index in range(len(token_ids)):
        added = _decode(tokenizer, token_ids[prefix : index + 1])[len(prefix_text) :]
        agreed = _agreement(added, text[position : position + len(added)])
        ends.append(max(position + agreed, ends[-1] if ends else 0))
        if 0 < agreed == len(added):
            position += agreed
            prefix, read = read, index + 1
            prefix_text = _decode(tokenizer, token_ids[prefix:read])
    return ends


def _ends_from_first_id(tokenizer: Decoder, token_ids: list[int], text: str) -> list[int]:
    """End of each token by its definition; quadratic in the number of ids."""
    ends: list[int] = []
    for index in range(len(token_ids)):
        agreed = _agreement(_decode(tokenizer, token_ids[: index + 1]), text)
        ends.append(max(agreed, ends[-1] if ends else 0))
    return ends
