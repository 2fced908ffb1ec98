"""Object HalBench: objects that a judge lists, and metrics that the official script would give for the same lists."""

import json
from pathlib import Path

import pytest
from support.benchmark_files import figures_of, write_obj_halbench

from fgaif_ray.config import ObjHalBenchConfig
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.base import Review
from fgaif_ray.evaluation.benchmarks.obj_halbench import ObjHalBench, named_words, read_list

LONG = "There is something in the picture."


def benchmark(tmp_path: Path, **settings: object) -> ObjHalBench:
    path = write_obj_halbench(tmp_path / "objects")
    return ObjHalBench(ObjHalBenchConfig.model_validate({"path": path, **settings}))


def listed(**lists: list[str]) -> dict[tuple[str, bool], Review]:
    return {(id_.strip("_"), False): Review(json.dumps(words)) for id_, words in lists.items()}


def test_metrics_are_those_of_the_official_formulas(tmp_path: Path) -> None:
    # Image 1 has a dog and a table, image 2 a train. Words count once each: dog, puppy (right), cat (wrong) | train.
    reviews = listed(_0=["dog", "puppies", "a dog", "two cats"], _1=["trains", "sky"])
    figures = figures_of(benchmark(tmp_path).score({"0": LONG, "1": LONG}, reviews))
    assert figures == {
        "response": 1 / 2,  # CHAIRs_refine: answers with a wrong object of those with a COCO object
        "mention": 1 / 4,  # CHAIRi
        "chair_s": 1 / 2,
        "recall": 2 / 3,
        "words": 6.0,
        "mentions": 2.0,
    }


def test_an_answer_without_objects_counts_for_chair_s_alone(tmp_path: Path) -> None:
    figures = figures_of(benchmark(tmp_path).score({"0": LONG, "1": LONG}, listed(_0=["cat"], _1=["sky"])))
    assert (figures["response"], figures["chair_s"]) == (1.0, 0.5)


def test_a_short_answer_asks_nobody_and_has_no_objects(tmp_path: Path) -> None:
    objects = benchmark(tmp_path)
    answers = {"0": "Assistant: A cat here.", "1": LONG}
    assert [question.id for question in objects.judge_questions(answers)] == ["1"]
    scores = objects.score(answers, listed(_1=["train"]))
    assert (figures_of(scores)["chair_s"], scores.counts["unrated"]) == (0.0, 0)


def test_the_judge_is_asked_with_the_official_prompt(tmp_path: Path) -> None:
    (question,) = benchmark(tmp_path).judge_questions({"0": "It has {braces} and {question}."})
    assert question.messages == [
        {
            "role": "system",
            "content": "List the objects. Describe image 1.\n\nAnswer: It has {braces} and {question}.\n\n"
            'Write a list: ["object"]',
        }
    ]


def test_a_review_without_a_list_is_left_out_and_counted(tmp_path: Path) -> None:
    reviews = listed(_0=["dog"]) | {("1", False): Review("I see a train.")}
    scores = benchmark(tmp_path).score({"0": LONG, "1": LONG}, reviews)
    assert (scores.ids, scores.counts) == (("0",), {"unanswered": 0, "unrated": 1})


@pytest.mark.parametrize(
    ("review", "objects"),
    [
        ('["dog", "cat"]', ["dog", "cat"]),
        ('The objects are:\n["dog"]', ["dog"]),
        ('```json\n["dog"]\n```', ["dog"]),
        ("[]", []),
        ("()", []),
        ('{"objects": 1}', None),
        ("a dog", None),
    ],
)
def test_lists_of_a_judge(review: str, objects: list[str] | None) -> None:
    assert read_list(review) == objects


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dogs", ["dog"]),
        ("baby dog", ["dog"]),
        ("wine glasses", ["wine glass"]),
        ("red dining tables", ["dining table"]),
        ("two brown puppies", ["puppy"]),
        ("train track", ["train track"]),  # which is no object of COCO
        ("train driver", ["train driver"]),  # a compound is not its first noun
    ],
)
def test_listed_objects_become_words_of_the_synonym_list(tmp_path: Path, text: str, words: list[str]) -> None:
    assert named_words([text], benchmark(tmp_path)._reader) == words


def test_without_a_judge_every_mention_counts(tmp_path: Path) -> None:
    objects = benchmark(tmp_path, extraction="words")
    answers = {"0": "A dog, a dog and a cat.", "1": "A train."}
    assert objects.judge_questions(answers) == []
    assert figures_of(objects.score(answers, {}))["mention"] == 1 / 4


def test_only_the_judge_makes_it_a_judged_benchmark(tmp_path: Path) -> None:
    assert [benchmark(tmp_path / kind, extraction=kind).judged for kind in ("judge", "words")] == [True, False]


def test_images_come_out_of_the_official_file(tmp_path: Path) -> None:
    images = benchmark(tmp_path).embedded_images()
    assert {name: content() for name, content in images.items()} == {
        "000000000001.jpg": b"a picture",
        "000000000002.jpg": b"a picture",
    }


def test_a_script_without_the_prompt_is_refused(tmp_path: Path) -> None:
    folder = Path(write_obj_halbench(tmp_path / "objects"))
    (folder / "eval_gpt_obj_halbench.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="no text 'prompt_template'"):
        ObjHalBench(ObjHalBenchConfig(path=str(folder)))
