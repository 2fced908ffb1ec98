"""Characters of sampled ids: exact for every kind of decoder, and in time linear in the response."""

import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_tokenizers import (
    TOKENIZERS,
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    decoded,
    ids_of,
    to_ids,
    word_piece_tokenizer,
)
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fgaif_ray.token_offsets import ANCHORS, WINDOW, token_offsets


def ends_from_first_id(tokenizer: PreTrainedTokenizerFast, token_ids: list[int]) -> list[int]:
    """End of each token by the definition: where the decoding of all ids up to it stops agreeing with the text."""
    text = decoded(tokenizer, token_ids)
    ends = [0]
    for index in range(len(token_ids)):
        so_far = decoded(tokenizer, token_ids[: index + 1])
        agreed = next((place for place, (a, b) in enumerate(zip(so_far, text, strict=False)) if a != b), None)
        ends.append(max(min(len(so_far), len(text)) if agreed is None else agreed, ends[-1]))
    return ends[1:]


@pytest.mark.parametrize("make_tokenizer", TOKENIZERS)
@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_offsets_of_random_ids_follow_the_definition(
    make_tokenizer: Callable[[], PreTrainedTokenizerFast], data: st.DataObject
) -> None:
    tokenizer = make_tokenizer()
    ids = data.draw(ids_of(tokenizer))
    text = decoded(tokenizer, ids)
    offsets = token_offsets(tokenizer, ids)
    assert [end for _, end in offsets] == ends_from_first_id(tokenizer, ids)
    assert [start for start, _ in offsets] == [0, *(end for _, end in offsets)][: len(ids)]
    assert (offsets[-1][1] if offsets else 0) == len(text)


@given(text=st.text(max_size=60).map(lambda text: text.encode("utf-8", "ignore").decode()))
@settings(deadline=None)
def test_a_character_belongs_to_the_token_that_completes_it(text: str) -> None:
    tokenizer = byte_level_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    text = decoded(tokenizer, ids)
    for index, (start, end) in enumerate(token_offsets(tokenizer, ids)):
        assert decoded(tokenizer, ids[: index + 1]).startswith(text[:end])
        assert "\ufffd" in text or decoded(tokenizer, ids[: index + 1]).rstrip("\ufffd") == text[:end]
        assert start <= end


def test_bytes_of_one_character_are_empty_until_it_is_complete() -> None:
    tokenizer = byte_level_tokenizer()
    byte_pieces = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("🦊")[0][0]]
    ids = to_ids(tokenizer, list(byte_pieces[0]))
    assert decoded(tokenizer, ids) == "🦊"
    assert token_offsets(tokenizer, ids) == [(0, 0), (0, 0), (0, 0), (0, 1)]


def test_special_tokens_are_empty() -> None:
    tokenizer = byte_fallback_tokenizer()
    ids = to_ids(tokenizer, ["<s>", "▁The", "<s>", "▁cat", ".", "</s>"])
    assert token_offsets(tokenizer, ids) == [(0, 0), (0, 3), (3, 3), (3, 7), (7, 8), (8, 8)]


def test_bytes_that_never_become_a_character_are_covered() -> None:
    tokenizer = byte_fallback_tokenizer()
    ids = to_ids(tokenizer, ["▁cat", "<0xE2>", "<0x82>", "<0xAC>", "<0xC3>", "a", "<0xE2>"])
    text = decoded(tokenizer, ids)
    assert text == "cat\ufffd\ufffd\ufffd\ufffda\ufffd"
    assert token_offsets(tokenizer, ids) == [(0, 3), (3, 4), (4, 5), (5, 5), (5, 7), (7, 8), (8, 9)]


@pytest.mark.parametrize("make_tokenizer", [byte_level_tokenizer, byte_fallback_tokenizer])
@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_offsets_of_garbage_follow_the_definition(
    make_tokenizer: Callable[[], PreTrainedTokenizerFast], data: st.DataObject
) -> None:
    """Runs of single bytes, right and wrong ones, spaces, special tokens and words, in every order."""
    tokenizer = make_tokenizer()
    bytes_of_characters = b" A\xc3\xa9\xe2\x82\xac\xef\xbf\xbd\xf0\x9f"
    single = [f"<0x{byte:02X}>" for byte in bytes_of_characters]
    byte_level = "\u0120a\u00c3\u00a9\u00e2\u0124\u00ac\u00ef\u00bf\u00bd\u00f0\u0141"
    known = tokenizer.get_vocab()
    pieces = ["<s>", "</s>", "\u2581", "\u2581cat", "\ufffd", *single, *byte_level]
    ids = data.draw(st.lists(st.sampled_from([known[piece] for piece in pieces if piece in known]), max_size=30))
    assert [end for _, end in token_offsets(tokenizer, ids)] == ends_from_first_id(tokenizer, ids)


# Work


class CountingDecoder:
    """Counts the ids that are decoded, and hides what kind of decoder it is unless told not to."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, known: bool = False) -> None:
        self.tokenizer = tokenizer
        self.backend_tokenizer = tokenizer.backend_tokenizer if known else None
        self.decoded_ids = 0

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False, **kwargs: bool) -> str:
        self.decoded_ids += len(token_ids)
        return str(self.tokenizer.decode(token_ids, skip_special_tokens, **kwargs))


def calls_during(work: Callable[[], object]) -> int:
    """Calls of functions, of Python's own too."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


GARBAGE = [
    (byte_level_tokenizer, ["\u00c3"]),
    (byte_level_tokenizer, ["\u00e2", "\u0124", "\u0120", "<s>", "\u00a9", "\u00c3", "\u00f0", "a"]),
    (byte_level_tokenizer, ["</s>"]),
    (byte_fallback_tokenizer, ["<0xC3>"]),
    (byte_fallback_tokenizer, ["<0xC3>", "<0xA9>", "<0xE2>", "<s>", "<0x41>"]),
    (byte_fallback_tokenizer, ["\u2581", "<0x41>", "\ufffd", "<0xFF>", "\u2581cat"]),
    (byte_fallback_tokenizer, ["</s>"]),
]
"""Tokens of which a policy that has lost its way makes a response: bytes that are no character, specials again and
again."""


@pytest.mark.parametrize(("make_tokenizer", "tokens"), GARBAGE)
def test_the_work_on_garbage_grows_as_its_length(
    make_tokenizer: Callable[[], PreTrainedTokenizerFast], tokens: list[str]
) -> None:
    some = to_ids(make_tokenizer(), tokens) * (400 // len(tokens))
    decoder = CountingDecoder(make_tokenizer(), known=True)
    token_offsets(decoder, some)  # what is remembered of a tokenizer is remembered now
    decoder.decoded_ids = 0
    few, many = (calls_during(lambda ids=ids: token_offsets(decoder, ids)) for ids in (some, some * 8))
    assert many < 2 * 8 * few  # it would be 64 times as much if it grew as the square
    assert decoder.decoded_ids == len(some) + len(some * 8)


@pytest.mark.parametrize(
    ("make_tokenizer", "tokens"), [*GARBAGE, (word_piece_tokenizer, ["[SEP]", "cat"]), (word_piece_tokenizer, ["##s"])]
)
def test_a_tokenizer_of_an_unknown_kind_is_asked_about_a_few_ids_at_a_time(
    make_tokenizer: Callable[[], PreTrainedTokenizerFast], tokens: list[str]
) -> None:
    ids = to_ids(make_tokenizer(), tokens) * (4096 // len(tokens))
    decoder = CountingDecoder(make_tokenizer())
    offsets = token_offsets(decoder, ids)
    assert decoder.decoded_ids < (2 * WINDOW + ANCHORS) * len(ids)
    assert len(offsets) == len(ids)
    assert all(start <= end for start, end in offsets)
    assert ([0, *(end for _, end in offsets)][:-1], offsets[-1][1]) == (
        [start for start, _ in offsets],
        len(decoded(make_tokenizer(), ids)),
    )


def test_text_of_an_unknown_kind_of_tokenizer_takes_a_few_decodings_of_each_id() -> None:
    ids = byte_level_tokenizer().encode("The cat sits on the mat. 你好 😀 " * 40, add_special_tokens=False)
    decoder = CountingDecoder(byte_level_tokenizer())
    offsets = token_offsets(decoder, ids)
    assert decoder.decoded_ids < 8 * len(ids)
    assert offsets == token_offsets(byte_level_tokenizer(), ids)
