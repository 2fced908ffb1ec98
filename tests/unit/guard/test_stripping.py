"""What stays of an answer when segments are cut: kept text alone, in whole sentences."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgaif_ray.guard.balance import is_balanced
from fgaif_ray.guard.clauses import as_sentence, stands_alone
from fgaif_ray.guard.stripping import AnswerStripper, strip_answer
from fgaif_ray.segments import Span, split_segments


def strip(parts: list[str], cut: set[int]) -> str:
    """What stays of segments of which some are cut."""
    ends = [sum(map(len, parts[: index + 1])) for index in range(len(parts))]
    spans = [Span(end - len(part), end) for part, end in zip(parts, ends, strict=True)]
    return strip_answer("".join(parts), spans, [index in cut for index in range(len(parts))])[0]


CAT = "There is a cat on the mat, "


@pytest.mark.parametrize(
    ("parts", "cut", "kept"),
    [
        (["There is a cat, ", "and a red ball."], {1}, "There is a cat."),
        (["There is a cat, ", "and a red ball."], {0}, ""),
        (["There is a cat, ", "and a red ball! ", "A dog is here."], {1}, "There is a cat! A dog is here."),
        ([CAT, "and there is a red ball. ", "A dog is here."], {0}, "There is a red ball. A dog is here."),
        ([CAT, "which is red. ", "A dog is here."], {0}, "A dog is here."),
        ([CAT, "which is red, ", "and there is a dog."], {1}, "There is a cat on the mat. There is a dog."),
        ([CAT, "which is red, ", "and a dog."], {1}, "There is a cat on the mat."),
        (["In the background of it, ", "a man is standing. ", "A dog is here."], {1}, "A dog is here."),
        (["While a cat is on the mat, ", "a ball is there."], {1}, ""),
        (["While a cat is on the mat, ", "a ball is there."], {0}, "A ball is there."),
        (["A cat is here. ", "A dog is here. ", "A cow is here."], {1}, "A cat is here. A cow is here."),
        (["A cat is here. ", "A dog is here.\n\n", "A cow is here."], {1}, "A cat is here.\n\nA cow is here."),
        (["A cat is here. ", "A dog is here."], {1}, "A cat is here."),
        (["A cat is here. ", "A dog is here. ", "It is brown."], {1}, "A cat is here."),
        (["A cat is here. ", "A dog is here. ", "This image has snow."], {1}, "A cat is here. This image has snow."),
        (["- a cat\n", "- a dog\n", "- a cow\n"], {1}, "- a cat\n- a cow\n"),
        (["- a cat\n", "- a dog\n", "- a cow\n"], {2}, "- a cat\n- a dog"),
        (['He said "a dog is here. ', 'It is big." ', "A man is here."], {1}, "A man is here."),
        (["A cat is here, ", "and a dog runs"], {1}, "A cat is here."),
        (["A cat is here, ", "and a dog runs"], set(), "A cat is here, and a dog runs"),
        (["A cat is here. ", "A dog is here."], {0, 1}, ""),
    ],
)
def test_what_stays_is_whole_sentences(parts: list[str], cut: set[int], kept: str) -> None:
    assert strip(parts, cut) == kept


def test_what_goes_is_told_with_its_reason() -> None:
    parts = ["There is a cat, ", "and a red ball. ", "It is big. ", "A dog is here."]
    ends = [16, 32, 43, 57]
    spans = [Span(end - len(part), end) for part, end in zip(parts, ends, strict=True)]
    _, cuts = strip_answer("".join(parts), spans, [False, True, False, False])
    assert [(one.index, one.reason) for one in cuts] == [(1, "hallucinated"), (2, "depends")]


@pytest.mark.parametrize(
    ("clause", "sentence"),
    [
        ("and there is a red ball.", "There is a red ball."),
        ("but I can also see a dog.", "I can also see a dog."),
        ("the image shows a dog.", "The image shows a dog."),
        ("while there's a dog.", "There's a dog."),
        ("and a red ball.", None),
        ("which is red.", None),
        ("and is red.", None),
        ("a can of soda on the table.", None),
        ("a cat that is red.", None),
        ("and it is red.", None),
        ("with a dog by its side.", None),
    ],
)
def test_a_clause_becomes_a_sentence_if_it_can_be_one(clause: str, sentence: str | None) -> None:
    assert as_sentence(clause) == sentence


def test_a_subordinate_clause_does_not_stand_alone() -> None:
    assert not stands_alone("Although there is a cat on the mat")


SENTENCES = st.sampled_from(
    [
        "There is a cat on the mat in the room, and there is a red ball on the floor.",
        "A dog (small and brown, with a bell on it) is here, which is next to a tree in the yard.",
        'A sign says "stop here, all of you good people" and a man is near it, and he wears a green hat.',
        "It is on the left of the red circle.",
        "In the background of the picture, a man is standing with an umbrella in his hand!",
        "They are all blue, and some of them may be red, but the sky is clear and bright there.",
        "Yes.",
        "**Left:** two dogs run in the park there, and a cat is up in a tree.",
        "Is there a cat on the mat here, or is there a dog under the table?",
    ]
)
SPACES = st.sampled_from([" ", " ", "\n", "\n\n", "\n- "])


@st.composite
def answers(draw: st.DrawFn) -> str:
    sentences = draw(st.lists(SENTENCES, min_size=1, max_size=6))
    text = sentences[0]
    for sentence in sentences[1:]:
        text += draw(SPACES) + sentence
    return text


def cut_somewhere(draw: st.DrawFn, text: str) -> tuple[list[Span], list[bool]]:
    spans = split_segments(text)
    return spans, draw(st.lists(st.booleans(), min_size=len(spans), max_size=len(spans)))


@st.composite
def cut_answers(draw: st.DrawFn) -> tuple[str, list[Span], list[bool]]:
    text = draw(answers())
    return text, *cut_somewhere(draw, text)


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def is_part(words: list[str], of: list[str]) -> bool:
    """Whether the words come in this order among others."""
    others = iter(of)
    return all(word in others for word in words)


@given(cut_answers())
def test_no_word_of_a_cut_segment_stays(case: tuple[str, list[Span], list[bool]]) -> None:
    text, spans, cut = case
    kept, _ = strip_answer(text, spans, cut)
    allowed = "".join(text[span.start : span.end] for span, gone in zip(spans, cut, strict=True) if not gone)
    assert is_part(words_of(kept), words_of(allowed))


@given(cut_answers())
def test_white_space_and_punctuation_stay_whole(case: tuple[str, list[Span], list[bool]]) -> None:
    text, spans, cut = case
    kept, _ = strip_answer(text, spans, cut)
    assert "  " not in kept and " ." not in kept and ",." not in kept
    assert all(is_balanced(paragraph) for paragraph in kept.split("\n"))
    assert not any(cut) or not kept.rstrip().endswith(",")


@given(cut_answers())
def test_every_segment_stays_or_is_told_as_cut(case: tuple[str, list[Span], list[bool]]) -> None:
    text, spans, cut = case
    kept, cuts = strip_answer(text, spans, cut)
    gone = {one.index for one in cuts}
    assert {index for index, one in enumerate(cut) if one} <= gone
    assert [one.index for one in cuts] == sorted(gone)
    assert (kept.strip() == "") == (len(gone) == len(spans))


@given(st.text() | answers())
def test_without_a_cut_the_text_is_the_same(text: str) -> None:
    spans = split_segments(text)
    assert strip_answer(text, spans, [False] * len(spans)) == (text, [])


@given(cut_answers())
def test_what_was_given_back_is_never_taken_back(case: tuple[str, list[Span], list[bool]]) -> None:
    """A stream sends it at once: the pieces together are what a whole answer becomes."""
    text, spans, cut = case
    stripper = AnswerStripper()
    sent = ""
    for span, gone in zip(spans, cut, strict=True):
        sent += stripper.push(text[span.start : span.end], gone)
    whole, _ = strip_answer(text, spans, cut)
    assert whole.startswith(sent) and whole == sent + stripper.finish()
