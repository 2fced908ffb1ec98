"""Segment spans, offsets of sampled ids, and the tokens at which segments end."""

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fgaif_ray.segments import (
    Span,
    _ends_from_first_id,
    has_words,
    segment_token_ends,
    split_segments,
    token_offsets,
)

TRAINING_TEXT = [
    "The cat sits on the mat. The dog is red.\n\nThere is a tree. No people are here.",
    "A small blue circle, left of the big red square; the café is closed! 你好。世界 😀😃 naïve",
] * 20


@cache
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer whose merges cross sentence borders (". The", ".\\n\\n")."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    tokenizer.add_tokens([". The", ".\n\n", ".No"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@cache
def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that decodes as Llama's does: word markers, single bytes as fallback, one leading space
    stripped."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁The", "▁cat", "s", ".", "▁A", "a", "é", "\ufffd", ".\n", "▁▁"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@cache
def word_piece_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that puts spaces between words when it decodes."""
    pieces = [
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "the",
        "cat",
        "##s",
        "sit",
        ".",
        ",",
        "'",
        "n't",
        "do",
        "##ing",
        "é",
        "你",
    ]
    tokenizer = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


TOKENIZERS = [byte_level_tokenizer, byte_fallback_tokenizer, word_piece_tokenizer]


def decoded(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def to_ids(tokenizer: PreTrainedTokenizerFast, tokens: list[str]) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[token] for token in tokens]


def pieces(text: str) -> list[str]:
    return [text[span.start : span.end] for span in split_segments(text)]


def ids_of(tokenizer: PreTrainedTokenizerFast) -> st.SearchStrategy[list[int]]:
    """Any ids at all, or ids of whole characters that no encoder would choose for their text."""
    any_id = st.integers(0, len(tokenizer) - 1)
    characters = st.text(min_size=1, max_size=3).map(lambda text: text.encode("utf-8", "ignore").decode())
    whole = st.lists(characters, max_size=15).map(
        lambda parts: [index for part in parts for index in tokenizer.encode(part, add_special_tokens=False)]
    )
    return st.lists(any_id, max_size=40) | whole


# ----------------------------------------------------------------------------------------------------
# split_segments


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("  \n ", ["  \n "]),
        ("?!", ["?!"]),
        ("Cat", ["Cat"]),
        ("There is a cat. It is red.", ["There is a cat. ", "It is red."]),
        ("no final stop here", ["no final stop here"]),
        ("The tower is 3.5 m tall. It stands alone.", ["The tower is 3.5 m tall. ", "It stands alone."]),
        (
            "Mr. Smith holds a cup. He smiles, e.g. at me.",
            ["Mr. Smith holds a cup. ", "He smiles, e.g. at me."],
        ),
        ("Items found:\n- a red cup\n- a blue plate", ["Items found:\n- a red cup\n", "- a blue plate"]),
        (
            "1. The first cat sleeps.\n2. The second cat eats.",
            ["1. The first cat sleeps.\n", "2. The second cat eats."],
        ),
        ("A dog runs fast.\n\nA cat sleeps here.\n", ["A dog runs fast.\n\n", "A cat sleeps here.\n"]),
        ("我看到一只猫。它是红色的。", ["我看到一只猫。", "它是红色的。"]),
    ],
)
def test_sentences_become_spans(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


@pytest.mark.parametrize("mark", [",", ";", "!", "?"])
def test_a_mark_splits_with_five_words_on_both_sides(mark: str) -> None:
    assert pieces(f"one two three four five{mark} six seven eight nine ten") == [
        f"one two three four five{mark} ",
        "six seven eight nine ten",
    ]


@pytest.mark.parametrize(
    "text", ["one two three four, six seven eight nine ten", "one two three four five, six seven eight nine"]
)
def test_four_words_on_one_side_do_not_split(text: str) -> None:
    assert pieces(text) == [text]


def test_the_words_before_are_counted_from_the_last_split() -> None:
    text = "a b c d e, f g, h i j, k l m n o"
    assert pieces(text) == ["a b c d e, ", "f g, h i j, ", "k l m n o"]


def test_a_comma_inside_a_number_does_not_split() -> None:
    assert pieces("There are more than about 1,000 people in this big square") == [
        "There are more than about 1,000 people in this big square"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes. There is a cat.", ["Yes. There is a cat."]),
        ("There is a cat. Nice!", ["There is a cat. Nice!"]),
        ("There is a cat. Wow. There is a dog.", ["There is a cat. ", "Wow. There is a dog."]),
        ("Yes.", ["Yes."]),
    ],
)
def test_too_short_sentences_join_a_neighbour(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


@given(st.text(max_size=80) | st.text(alphabet="ab ,;.!?\n\t\u3000\xa0\u2028\x85MJ\ud800éé😀中。-*1", max_size=60))
@settings(deadline=None, max_examples=200)
def test_spans_concatenate_to_the_text_and_hold_words(text: str) -> None:
    spans = split_segments(text)
    assert "".join(text[span.start : span.end] for span in spans) == text
    assert all(span.start < span.end for span in spans)
    if has_words(text):
        assert all(has_words(text[span.start : span.end]) for span in spans)
    else:
        assert len(spans) == (1 if text else 0)


# -----------------------------------------------------------------------------------------------------
# token_offsets


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
    assert [end for _, end in offsets] == _ends_from_first_id(tokenizer, ids, text)
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


class CountingDecoder:
    """Counts the ids that are decoded."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.decoded_ids = 0

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False, **kwargs: bool) -> str:
        self.decoded_ids += len(token_ids)
        return str(self.tokenizer.decode(token_ids, skip_special_tokens, **kwargs))


def test_the_work_grows_linearly_with_the_response() -> None:
    ids = byte_level_tokenizer().encode("The cat sits on the mat. 你好 😀 " * 40, add_special_tokens=False)
    decoder = CountingDecoder(byte_level_tokenizer())
    token_offsets(decoder, ids)
    assert decoder.decoded_ids < 8 * len(ids)


# ------------------------------------------------------------------------------------------------
# segment_token_ends


def test_ids_that_are_not_the_encoding_of_their_text_end_where_they_were_sampled() -> None:
    """A re-tokenisation would give three tokens here and an end out of range or off by one (METHOD mistake
    4)."""
    tokenizer = byte_level_tokenizer()
    text = "The cat sits. The dog is red."
    ids = to_ids(tokenizer, [piece.replace(" ", "Ġ") for piece in text])
    assert ids != tokenizer.encode(text, add_special_tokens=False)
    offsets = token_offsets(tokenizer, ids)
    assert segment_token_ends(split_segments(text), offsets, text) == [12, len(text) - 1]


@pytest.mark.parametrize("text", ["cat", "There is a cat", "There is a cat.\n"])
def test_a_response_of_one_segment_keeps_its_one_end(text: str) -> None:
    tokenizer = byte_level_tokenizer()
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    offsets = token_offsets(tokenizer, ids)
    (end,) = segment_token_ends(split_segments(text), offsets, text)
    start_of_token, end_of_token = offsets[end]
    assert start_of_token < len(text.rstrip()) <= end_of_token


def test_a_merged_token_on_the_border_ends_the_first_segment() -> None:
    tokenizer = byte_level_tokenizer()
    first = tokenizer.encode("The cat sits", add_special_tokens=False)
    second = tokenizer.encode(" dog is red.", add_special_tokens=False)
    border = tokenizer.convert_tokens_to_ids(". The")
    ids = [*first, border, *second]
    text = decoded(tokenizer, ids)
    ends = segment_token_ends(split_segments(text), token_offsets(tokenizer, ids), text)
    assert ends == [len(first), len(ids) - 1]


def test_two_segments_may_end_on_one_token() -> None:
    tokenizer = byte_level_tokenizer()
    ids = [*tokenizer.encode("A cat", add_special_tokens=False), tokenizer.convert_tokens_to_ids(".No")]
    text = decoded(tokenizer, ids)
    spans = [Span(0, 6), Span(6, 8)]
    assert segment_token_ends(spans, token_offsets(tokenizer, ids), text) == [len(ids) - 1] * 2


@pytest.mark.parametrize("make_tokenizer", TOKENIZERS)
@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_ends_are_valid_ordered_and_hold_the_last_character(
    make_tokenizer: Callable[[], PreTrainedTokenizerFast], data: st.DataObject
) -> None:
    tokenizer = make_tokenizer()
    ids = data.draw(ids_of(tokenizer))
    text = decoded(tokenizer, ids)
    spans = split_segments(text)
    offsets = token_offsets(tokenizer, ids)
    ends = segment_token_ends(spans, offsets, text)
    assert len(ends) == len(spans)
    assert ends == sorted(ends)
    for span, index in zip(spans, ends, strict=True):
        last = max(span.start + len(text[span.start : span.end].rstrip()), span.start + 1) - 1
        if text[span.start : span.end].strip():
            assert offsets[index][0] <= last < offsets[index][1]


def test_offsets_of_another_text_are_refused() -> None:
    with pytest.raises(ValueError, match="offsets end at character 2"):
        segment_token_ends([Span(0, 5)], [(0, 1), (1, 2)], "hello")


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (
            "\u56fe\u4e2d\u6709\u4e00\u53ea\u7ea2\u8272\u7684\u72d7\uff0c\u5b83\u5750\u5728\u7eff\u8272\u7684\u8349\u5730\u4e0a\u3002",
            [
                "\u56fe\u4e2d\u6709\u4e00\u53ea\u7ea2\u8272\u7684\u72d7\uff0c",
                "\u5b83\u5750\u5728\u7eff\u8272\u7684\u8349\u5730\u4e0a\u3002",
            ],
        ),
        (
            "a b c d e\u060c f g h i j.",
            ["a b c d e\u060c ", "f g h i j."],
        ),
        (
            "The bag weighs approx. 4 kg. It stands near a lamp.",
            ["The bag weighs approx. 4 kg. ", "It stands near a lamp."],
        ),
        ("It says no. 5 on the wall. It is old.", ["It says no. 5 on the wall. ", "It is old."]),
        ('He said "It is red." Then he left the room.', ['He said "It is red." ', "Then he left the room."]),
        ("**A red dog sits here.** The cat sleeps now.", ["**A red dog sits here.** ", "The cat sleeps now."]),
    ],
    ids=["full-width comma", "Arabic comma", "abbreviation", "number sign", "quote", "bold"],
)
def test_marks_of_other_scripts_and_what_closes_a_sentence(text: str, pieces: list[str]) -> None:
    assert [text[span.start : span.end] for span in split_segments(text)] == pieces
