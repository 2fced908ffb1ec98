"""Which characters of a decoded response each sampled token stands for, in time linear in its length.

The text is decoded once. Where the tokenizer's decoder is one of the two that put bytes together (byte-level BPE, and
BPE with single bytes as fallback), the end of each token follows from the bytes of the tokens up to it. Other
tokenizers are asked again, about a few tokens at a time.
"""

import codecs
import json
import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby, pairwise
from typing import Any, Final, Protocol, cast

WRONG: Final = "\ufffd"
"""The replacement character, for bytes that are no character."""
WINDOW: Final = 64
"""Ids that are decoded together, at most, to find where the last of them ends."""
ANCHORS: Final = 32
"""How often all ids so far are decoded again, where a window has lost its place in the text."""
NO_STRIP: Final = {"content": " ", "start": 0, "stop": 0}
_BYTE_PIECE: Final = re.compile("<0x[+0-9A-Fa-f][0-9A-Fa-f]>")


class Decoder(Protocol):
    """What ``token_offsets`` needs of a tokenizer; every ``transformers`` tokenizer has it."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False, **kwargs: Any) -> str | list[str]: ...


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
        ``[response_tokens]`` pairs ``(start, end)``, contiguous from 0 to the length of the text. A tokenizer that is
        neither of the two kinds above, and does not decode a token alone as it does among others for WINDOW tokens on
        end, may have its ends there at other tokens of those.
    """
    ids = list(token_ids)
    text = _decode(tokenizer, ids)
    ends = _ends_by_bytes(tokenizer, ids, text)
    if ends is None:
        ends = _ends_by_window(tokenizer, ids, text)
    return list(pairwise([0, *ends]))


def _decode(tokenizer: Decoder, token_ids: list[int]) -> str:
    text = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return cast("str", text)  # one sequence decodes to one string


# Tokens as bytes


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Pieces of a vocabulary and how its decoder joins them."""

    backend: Any
    special: frozenset[int]
    """Ids that are left out of the text."""
    replaced: tuple[tuple[str, str], ...] | None
    """Marks in pieces and what they stand for, where single bytes are the fallback; None with byte-level BPE."""
    stripped: int = 0
    """Spaces that are taken off the beginning of the text, at most."""

    def of(self, token_id: int) -> str | None:
        """The piece of an id, None where it has none or is left out."""
        return None if token_id in self.special else cast("str | None", self.backend.id_to_token(token_id))


@lru_cache(maxsize=4)
def _pieces_of(tokenizer: Any) -> _Pieces | None:
    """How a tokenizer decodes, None where that is not known here."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
    if backend is None or decoder is None:
        return None
    special = frozenset(token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special)
    found = json.loads(decoder.__getstate__())
    steps = found["decoders"] if found["type"] == "Sequence" else [found]
    match [step["type"] for step in steps]:
        case ["ByteLevel"]:
            return _Pieces(backend, special, None)
        case [*replacing, "ByteFallback", "Fuse"] | [*replacing, "ByteFallback", "Fuse", "Strip"] if all(
            name == "Replace" for name in replacing
        ):
            replaced = [(step["pattern"].get("String"), step["content"]) for step in steps[: len(replacing)]]
            strip: dict[str, Any] = steps[-1] if steps[-1]["type"] == "Strip" else NO_STRIP
            if (strip["content"], strip["stop"]) == (" ", 0) and all(pattern for pattern, _ in replaced):
                return _Pieces(backend, special, tuple(replaced), strip["start"])
    return None


def _ends_by_bytes(tokenizer: Decoder, ids: Sequence[int], text: str) -> list[int] | None:
    """End of each token from the bytes of the tokens; None where they do not make the text."""
    pieces = _pieces_of(cast("Hashable", tokenizer))
    if pieces is None:
        return None
    piece_of = {token_id: pieces.of(token_id) for token_id in set(ids)}
    given = [piece_of[token_id] for token_id in ids]
    return _byte_level_ends(given, text) if pieces.replaced is None else _byte_fallback_ends(given, text, pieces)


@cache
def _byte_level_alphabet() -> dict[str, int]:
    """Byte-level BPE's character for each byte: itself where it can be printed, and one above 255 where it cannot."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _byte_level_ends(pieces: Sequence[str | None], text: str) -> list[int] | None:
    alphabet = _byte_level_alphabet()
    known: dict[str | None, bytes] = {None: b""}
    for text_piece in {piece for piece in pieces if piece is not None}:
        codes = [alphabet.get(character) for character in text_piece]
        known[text_piece] = text_piece.encode() if None in codes else bytes(code for code in codes if code is not None)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    parts: list[str] = []
    ends: list[int] = []
    length = end = 0
    for piece in pieces:
        parts.append(decoder.decode(known[piece]))
        length += len(parts[-1])
        # First bytes of a character are a wrong one in what has been read so far. The text agrees if they stay wrong.
        unfinished = bool(decoder.getstate()[0]) and text[length : length + 1] == WRONG
        end = max(end, length + unfinished)
        ends.append(end)
    parts.append(decoder.decode(b"", final=True))
    return ends if "".join(parts) == text else None


@dataclass(frozen=True, slots=True)
class _Part:
    """Neighbouring tokens that are decoded together: one piece of text, or all bytes in a row."""

    tokens: Sequence[int]
    """Their places in the response."""
    text: str
    data: bytes | None = None
    """The bytes of a part of them; its text is their characters, or as many wrong ones as there are bytes."""


def _byte_fallback_ends(pieces: Sequence[str | None], text: str, how: _Pieces) -> list[int] | None:
    """End of each token where neighbouring bytes are one text together, or as many wrong characters as they are."""
    parts = _parts(pieces, how)
    whole = "".join(part.text for part in parts)
    cut = min(how.stripped, len(whole) - len(whole.lstrip(" ")))
    if whole[cut:] != text:
        return None
    ends: list[int] = []
    before = end = 0  # characters of parts, those that are cut off among them
    for part in parts:
        if part.data is None:
            found: Iterator[int] = iter([before + len(part.text) - cut])
        else:
            strippable = before < how.stripped and not whole[:before].strip(" ")
            found = _ends_in_bytes(part.data, before, cut, how.stripped - before if strippable else 0, text)
        for place in part.tokens:
            end = end if pieces[place] is None else max(end, next(found))
            ends.append(end)
        before += len(part.text)
    return ends


def _parts(pieces: Sequence[str | None], how: _Pieces) -> list[_Part]:
    byte_of = {piece: _byte_of(piece) for piece in set(pieces)}
    is_byte = [byte_of[piece] is not None for piece in pieces]
    for place, piece in enumerate(pieces):
        if piece is None and place:  # what is left out of the text does not part bytes
            is_byte[place] = is_byte[place - 1]
    parts: list[_Part] = []
    for bytes_follow, group in groupby(range(len(pieces)), is_byte.__getitem__):
        places = list(group)
        if not bytes_follow:
            parts += [_Part([place], _replaced(pieces[place] or "", how)) for place in places]
            continue
        data = b"".join(byte_of[pieces[place]] or b"" for place in places)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = WRONG * len(data)
        parts.append(_Part(places, text, data))
    return parts


def _byte_of(piece: str | None) -> bytes | None:
    """The byte of a fallback piece such as ``<0x0A>``."""
    return bytes([int(piece[3:5], 16)]) if piece is not None and _BYTE_PIECE.fullmatch(piece) else None


def _replaced(piece: str, how: _Pieces) -> str:
    for mark, text in how.replaced or ():
        piece = piece.replace(mark, text)
    return piece


def _ends_in_bytes(data: bytes, before: int, cut: int, strippable: int, text: str) -> Iterator[int]:
    """Yield where the text stops agreeing with the decoding up to each byte of a part.

    Args:
        data: of the part.
        before: characters of the parts before it.
        cut: spaces that are taken off the beginning of the text.
        strippable: spaces that would be taken off this part, if it began with so many.
        text: the whole.
    """
    start = max(0, before - cut)
    wrong = 0  # wrong characters that the text has here
    while wrong < len(data) and text[start + wrong : start + wrong + 1] == WRONG:
        wrong += 1
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    read = 0  # characters of the bytes so far
    leading: int | None = 0  # wrong characters that those begin with; the next one counts unless it is None
    agreed = 0
    broken, whole_is_valid = False, _is_utf8(data)
    for count, byte in enumerate(data, start=1):
        try:
            characters = "" if broken else decoder.decode(bytes([byte]))
        except UnicodeDecodeError:
            characters, broken = "", True
        for character in characters:
            read += 1
            if leading == 0 and character == " " and read <= strippable:
                continue
            leading = leading + 1 if leading is not None and character == WRONG else None
            agreed = leading or agreed
        if broken or decoder.getstate()[0]:
            yield start + min(count, wrong)
        elif whole_is_valid:
            yield max(0, before + read - cut)
        else:
            yield start + agreed


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# Windows of tokens


def _agreement(left: str, right: str) -> int:
    """Length of the longest common prefix."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))


def _ends_by_window(tokenizer: Decoder, token_ids: list[int], text: str) -> list[int]:
    """End of each token, decoding only the ids since the last but one boundary that agreed with the text.

    The ids in ``[prefix, read)`` are decoded again with every new id because decoders strip a leading space
    from what they are given first; as both decodings lose it, their difference is right. A window that does not come
    to agree is given up after WINDOW ids, and its place in the text is asked of all ids so far.
    """
    ends: list[int] = []
    prefix, read = 0, 0
    prefix_text = ""
    position = end = 0  # characters of the text that the ids before ``read`` stand for
    anchors = ANCHORS
    for index in range(len(token_ids)):
        if end == len(text) or not anchors:
            break
        added = _decode(tokenizer, token_ids[prefix : index + 1])[len(prefix_text) :]
        agreed = _agreement(added, text[position : position + len(added)])
        end = max(position + agreed, end)
        if 0 < agreed == len(added):
            position += agreed
            prefix, read = read, index + 1
            prefix_text = _decode(tokenizer, token_ids[prefix:read])
        elif index + 1 - read >= WINDOW:
            anchors -= 1
            position = end = max(_agreement(_decode(tokenizer, token_ids[: index + 1]), text), end)
            prefix, read = index, index + 1
            prefix_text = _decode(tokenizer, token_ids[prefix:read])
        ends.append(end)
    ends += [end] * (len(token_ids) - len(ends))
    if ends:
        ends[-1] = len(text)
    return ends
