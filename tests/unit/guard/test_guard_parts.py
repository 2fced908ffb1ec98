"""What the guard reads of a request, how it tells segments apart, and how it chooses."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.guard.answers import should_cut
from fgaif_ray.errors import ItemError
from fgaif_ray.guard.buffer import SegmentBuffer
from fgaif_ray.guard.chat import ImageQuestion, read_question
from fgaif_ray.guard.choosing import ChoiceRule, rank
from fgaif_ray.guard.judgement import AnswerJudgement, SegmentJudgement, judge_spans, judgement_json, read_judgement
from fgaif_ray.guard.sse import EventReader, write_event
from fgaif_ray.segments import Span, split_segments
from fgaif_ray.serving.wire import MAX_IMAGE_BYTES, MAX_IMAGES, MAX_PROMPT_CHARACTERS, ScoredResponse, TrainedOn

URL = "data:image/png;base64,AAAA"
IMAGE = {"type": "image_url", "image_url": {"url": URL}}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def request(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": list(messages), **fields}


# Requests


@pytest.mark.parametrize(
    ("messages", "images", "prompt"),
    [
        ([user(IMAGE, text("What is it?"))], 1, "What is it?"),
        ([user(text("What is it?"), IMAGE)], 1, "What is it?\n<image>"),
        ([user(IMAGE, text("and"), IMAGE)], 2, "<image>\nand\n<image>"),
        ([user(IMAGE, text("What?")), {"role": "assistant", "content": "A cat."}, user(text("Sure?"))], 1, "Sure?"),
        ([user(IMAGE, text("What?")), user(text("And"), IMAGE)], 2, "And"),
        ([user(IMAGE, text("Is <image> a word?"))], 1, "Is image a word?"),
        ([{"role": "system", "content": "Be brief."}, user(IMAGE, text("What?"))], 1, "What?"),
        ([user({"type": "image_url", "image_url": URL}, text("What?"))], 1, "What?"),
    ],
)
def test_images_and_the_last_question_are_read(messages: list[Any], images: int, prompt: str) -> None:
    assert read_question(request(*messages)) == ImageQuestion((URL,) * images, prompt)


@pytest.mark.parametrize(
    "messages",
    [[{"role": "user", "content": "Hello."}], [user(text("Hello."))], [], ["nonsense", 3], [{"role": "user"}]],
)
def test_without_an_image_there_is_nothing_to_judge(messages: list[Any]) -> None:
    assert read_question(request(*messages)) is None


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ([{"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}], "image_not_inline"),
        ([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}], "image_not_inline"),
        ([IMAGE] * (MAX_IMAGES + 1), "too_many_images"),
        ([IMAGE, text("x" * (MAX_PROMPT_CHARACTERS + 1))], "too_long"),
        ([{"type": "image_url", "image_url": {"url": URL + "A" * (2 * MAX_IMAGE_BYTES)}}], "image_too_large"),
    ],
)
def test_what_reward_models_cannot_read_is_named(content: list[Any], code: str) -> None:
    with pytest.raises(ItemError) as refused:
        read_question(request(user(*content)))
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("form", "cuttable"), [(None, True), ({"type": "text"}, True), ({"type": "json_object"}, False)]
)
def test_an_answer_bound_to_a_schema_is_not_cut(form: Any, cuttable: bool) -> None:
    question = read_question(request(user(IMAGE, text("What?")), response_format=form))
    assert question is not None and question.cuttable == cuttable


# Segments of a stream


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(0, 3))
def test_segments_that_have_ended_are_those_of_the_whole_answer(sizes: list[int], rounds: int) -> None:
    whole = "There is a cat on the mat, and there is a red ball on it. It is big. Yes. " * (rounds + 1)
    buffer, told, place = SegmentBuffer(), [], 0
    while place < len(whole):
        size = sizes[place % len(sizes)]
        buffer.add(whole[place : place + size])
        told += buffer.take()
        place += size
    told += buffer.take(final=True)
    assert buffer.text == whole
    assert told == split_segments(whole)


def test_a_segment_has_ended_when_the_next_has_begun() -> None:
    buffer = SegmentBuffer()
    buffer.add("A cat is here. ")
    assert buffer.take() == []
    buffer.add("A dog is there")
    assert buffer.take() == [Span(0, 15)]
    assert buffer.take() == []
    assert buffer.take(final=True) == [Span(15, 29)]


# Verdicts


def judged(*segments: tuple[float, float], trusted: bool = True, **types: Any) -> AnswerJudgement:
    """From P(hallucinated) and reward of each segment."""
    made = tuple(
        SegmentJudgement("x", index, index + 1, {"existence": (0.0, 1 - false, false), **types}, reward)
        for index, (false, reward) in enumerate(segments)
    )
    return AnswerJudgement(made, sum(reward for _, reward in segments), None if trusted else True)


def test_the_score_is_the_surest_hallucination_of_a_type_that_speaks_of_truth() -> None:
    one = judged((0.2, 0.0), (0.6, 0.0), novelty=(0.0, 0.1, 0.9))
    assert one.hallucination == 0.6


def test_verdicts_of_the_service_are_read_with_their_text() -> None:
    scored = ScoredResponse.model_validate(
        {
            "response": "A cat. A dog.",
            "segments": [
                {"start": 0, "end": 7, "token_end": None, "existence": [0.1, 0.7, 0.2], "rewards": {"existence": 0.5},
                 "reward": 0.5},
            ],
            "reward": 0.5,
            "token_rewards": None,
            "model_version": "1",
        }
    )  # fmt: skip
    field = judgement_json(read_judgement(scored))
    assert field["segments"] == [
        {
            "text": "A cat. ",
            "start": 0,
            "end": 7,
            "types": {"existence": {"verdict": "consistent", "probability": 0.7, "hallucinated": 0.2}},
        }
    ]
    assert (field["hallucination"], field["reward"], field["out_of_domain"], field["cut"]) == (0.2, 0.5, None, [])


def test_a_service_that_knows_its_depth_is_heard() -> None:
    scored = ScoredResponse(
        response="", segments=[], reward=0.0, token_rewards=None, model_version="1", out_of_domain=True,
        domain_distance=2.5,
    )  # fmt: skip
    known = TrainedOn(source="shapes", images=9, responses=9, segments=20)
    one = read_judgement(scored, trained_on=(known,))
    field = judgement_json(one)
    assert not one.trusted
    assert (field["out_of_domain"], field["domain_distance"]) == (True, 2.5)
    assert field["trained_on"] == [known.model_dump()]


@pytest.mark.parametrize(("trusted", "cuttable"), [(False, True), (True, False), (True, True)])
def test_an_answer_is_cut_where_verdicts_are_worth_it_and_it_is_prose(trusted: bool, cuttable: bool) -> None:
    question = ImageQuestion((URL,), "What?", cuttable=cuttable)
    assert should_cut(judged((0.9, -1.0), trusted=trusted), question) == (trusted and cuttable)


def test_spans_that_are_cut_otherwise_have_the_surest_verdict_of_what_they_share() -> None:
    one = judged((0.1, 1.0), (0.8, -1.0), (0.3, 0.5))
    first, second = judge_spans(one, "abc", [Span(0, 2), Span(2, 3)])
    assert (first.hallucination, first.reward, first.text) == (0.8, 0.0, "ab")
    assert (second.hallucination, second.reward) == (0.3, 0.5)


# Choice

SHORT, LONG, SAFE = judged((0.1, 1.0)), judged((0.3, 0.9), (0.4, 0.8)), judged((0.05, 0.2))


@pytest.mark.parametrize(("rule", "best"), [("mean_reward", 0), ("reward", 1), ("hallucination", 2)])
def test_the_rule_decides_which_answer_is_best(rule: ChoiceRule, best: int) -> None:
    assert rank([SHORT, LONG, SAFE], rule)[0] == best


def test_an_empty_answer_is_the_best_of_none() -> None:
    assert rank([judged(), judged((0.9, -1.0))], "reward") == [1, 0]


def test_equal_answers_keep_their_order() -> None:
    assert rank([SHORT, SHORT, LONG], "mean_reward") == [0, 1, 2]


def test_verdicts_on_unknown_images_choose_nothing() -> None:
    assert rank([judged((0.9, -1.0), trusted=False), judged((0.1, 1.0), trusted=False)], "reward") == [0, 1]


# Events


def test_events_are_read_as_they_are_written() -> None:
    reader = EventReader()
    lines = (write_event({"text": "a\nb"}) + b": a comment\n\n" + write_event("[DONE]")).decode().split("\n")
    assert [data for line in lines if (data := reader.feed(line)) is not None] == ['{"text":"a\\nb"}', "[DONE]"]


def test_an_event_of_several_lines_is_one() -> None:
    reader = EventReader()
    assert [reader.feed(line) for line in ('data: {"a":', "data:1}", "")] == [None, None, '{"a":\n1}']
