import json
import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.paths import SHARED

from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.pope import (
    STRATEGIES,
    PopeQuestion,
    ask_about,
    build_questions,
    parse_questions,
    says_yes,
    score_answers,
    score_questions,
    score_splits,
)

NAMES = ("apple", "bear", "cup", "dog", "egg", "fork", "goat", "hat")
OBJECTS = st.dictionaries(
    st.integers(0, 50).map(lambda i: f"{i}.png"), st.sets(st.sampled_from(NAMES), min_size=1), min_size=1, max_size=12
)
BENCHMARKS = Path(os.environ.get("FGAIF_BENCHMARKS", SHARED / "benchmarks"))


def names_asked(questions, image, label):
    return [q.text for q in questions if q.image == image and q.label is label]


@settings(max_examples=30, deadline=None)
@given(OBJECTS, st.sampled_from(STRATEGIES), st.sampled_from([2, 4, 6]))
def test_questions_are_half_yes_half_no_true_and_asked_once(objects, strategy, count):
    questions = build_questions(objects, strategy, questions_per_image=count)
    known = set().union(*objects.values())
    for image, names in objects.items():
        yes, no = names_asked(questions, image, True), names_asked(questions, image, False)
        assert len(yes) == len(no) == min(count // 2, len(names), len(known - names))
        assert set(yes) <= {ask_about(name) for name in names}
        assert set(no) <= {ask_about(name) for name in known - names}
        assert len({*yes, *no}) == len(yes) + len(no)
    assert [q.question_id for q in questions] == list(range(1, len(questions) + 1))


@settings(max_examples=10, deadline=None)
@given(OBJECTS)
def test_yes_questions_are_the_same_in_every_split(objects):
    splits = [[q for q in build_questions(objects, strategy) if q.label] for strategy in STRATEGIES]
    assert [[(q.image, q.text) for q in split] for split in splits[1:]] == [
        [(q.image, q.text) for q in splits[0]] for _ in splits[1:]
    ]


def test_popular_asks_about_the_most_frequent_absent_object():
    objects = {"a": {"cup"}, "b": {"dog", "cup"}, "c": {"dog", "egg"}, "d": {"dog"}}
    questions = build_questions(objects, "popular", questions_per_image=2)
    assert names_asked(questions, "a", False) == ["Is there a dog in the image?"]
    assert names_asked(questions, "d", False) == ["Is there a cup in the image?"]


def test_adversarial_asks_about_the_absent_object_that_usually_comes_along():
    # Dogs are the most frequent, but forks come with cups.
    objects = {"a": {"cup"}, "b": {"cup", "fork"}, "c": {"cup", "fork"}, "d": {"dog"}, "e": {"dog"}, "f": {"dog"}}
    questions = build_questions(objects, "adversarial", questions_per_image=2)
    assert names_asked(questions, "a", False) == ["Is there a fork in the image?"]


def test_random_negatives_change_with_the_seed_alone():
    objects = {f"{i}.png": {NAMES[i % 8]} for i in range(16)}
    first = build_questions(objects, "random", seed=1)
    assert first == build_questions(objects, "random", seed=1)
    assert first != build_questions(objects, "random", seed=2)


def test_the_choice_does_not_depend_on_where_the_images_lie():
    objects = {f"{i}.png": {NAMES[i % 8], NAMES[i % 5]} for i in range(16)}
    here = build_questions(objects, "random")
    there = build_questions({f"elsewhere/{image}": names for image, names in objects.items()}, "random")
    assert [q.text for q in here] == [q.text for q in there]


def test_an_odd_number_of_questions_is_refused():
    with pytest.raises(ValueError, match="even"):
        build_questions({"a": {"cup"}}, "random", questions_per_image=3)


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("no", False),
        (" No\n", False),
        ("No, there is a dog.", False),
        ("There is not a cat.", False),
        ("Yes. There is no cat.", True),  # only the first sentence is read
        ("There isn't one", True),  # official: no word of the three
        ("NO", True),  # official: case matters
        ("No!", True),  # official: only commas are dropped
        ("None of them", True),
        ("I know it", True),
        ("", True),
    ],
)
def test_answers_are_read_by_the_official_rule(answer, yes):
    assert says_yes(answer) is yes


def test_metrics_take_yes_as_the_positive_class():
    labels = [True, True, True, False, False, False, False, False]
    answers = [True, True, False, True, False, False, False, False]
    assert score_answers(labels, answers) == {
        "questions": 8,
        "accuracy": 6 / 8,
        "precision": 2 / 3,
        "recall": 2 / 3,
        "f1": pytest.approx(2 / 3),
        "yes_ratio": 3 / 8,
    }


def test_a_model_that_never_says_yes_has_no_precision():
    score = score_answers([True, False], [False, False])
    assert (score["precision"], score["recall"], score["f1"], score["yes_ratio"]) == (None, 0.0, 0.0, 0.0)


def test_no_questions_give_no_figures():
    assert set(score_answers([], []).values()) == {0, None}


def test_the_headline_is_the_mean_over_the_splits():
    first = [PopeQuestion(1, "a", "q1", True), PopeQuestion(2, "a", "q2", False)]
    second = [PopeQuestion(1, "a", "q1", True), PopeQuestion(2, "a", "q3", False)]
    scores = score_splits(
        {"random": first, "popular": second}, {("a", "q1"): "Yes", ("a", "q2"): "No", ("a", "q3"): "Yes"}
    )
    assert (scores["accuracy"], scores["yes_ratio"]) == (0.75, 0.75)
    assert scores["f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["splits"]["popular"]["precision"] == 0.5


def test_answers_are_joined_by_image_and_text_not_by_position():
    questions = [PopeQuestion(1, "a", "q1", True), PopeQuestion(2, "b", "q1", False)]
    answers = {("b", "q1"): "No", ("a", "q1"): "Yes", ("c", "other"): "No"}
    assert score_questions(questions, answers)["accuracy"] == 1.0


def test_a_question_without_an_answer_is_an_error():
    with pytest.raises(ValueError, match="no answer to 'q1' about a"):
        score_questions([PopeQuestion(1, "a", "q1", True)], {})


ENTRY = {"question_id": 7, "image": "a.jpg", "text": "Is there a cup in the image?", "label": "yes"}


@pytest.mark.parametrize("text", [json.dumps(ENTRY) + "\n\n", json.dumps([ENTRY], indent=1)])
def test_both_published_forms_are_read(text):
    assert parse_questions(text, "pope.json") == [PopeQuestion(7, "a.jpg", "Is there a cup in the image?", True)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question_id": 1}', "entry 1: a POPE question has the keys"),
        (json.dumps(ENTRY | {"label": "maybe"}), "label must be yes or no"),
        ("nonsense", "not a POPE file"),
    ],
)
def test_other_files_are_refused_in_one_sentence(text, message):
    with pytest.raises(UserError, match=message):
        parse_questions(text, "pope.json")


@pytest.mark.skipif(not (BENCHMARKS / "pope").is_dir(), reason="set FGAIF_BENCHMARKS to a folder with pope/*.json")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_published_files_are_read_whole_and_balanced(strategy):
    path = BENCHMARKS / "pope" / f"coco_pope_{strategy}.json"
    questions = parse_questions(path.read_text(), path)
    assert len(questions) == 3000
    assert Counter(q.label for q in questions) == {True: 1500, False: 1500}
    assert score_questions(questions, {(q.image, q.text): "Yes" if q.label else "No" for q in questions})["f1"] == 1.0
