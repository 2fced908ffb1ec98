"""Judged examples in the file of a report, of this version and of older ones."""

import dataclasses
import json

from fgaif_ray.report.judged import JudgedAnswer, JudgedExample, JudgedSegment

SEGMENT = JudgedSegment(
    start=0,
    end=10,
    labels={"existence": 2},
    probabilities={"existence": [0.1, 0.8, 0.1], "attribute": [0.1, 0.2, 0.7]},
    rewards={"existence": 0.7, "attribute": -0.5},
)
ANSWER = JudgedAnswer(text="A red dog.", finish_reason="stop", segments=(SEGMENT,))
EXAMPLE = JudgedExample(
    group="worst",
    name="dog.png",
    picture="data:image/png;base64,",
    enlarged=True,
    prompt="What is there?",
    truth=("large red circle, top left",),
    before=ANSWER,
    after=ANSWER,
)


def test_an_example_survives_json() -> None:
    assert JudgedExample.from_json(json.loads(json.dumps(EXAMPLE.to_json()))) == EXAMPLE


def test_examples_of_an_older_report_are_drawn() -> None:
    value = EXAMPLE.to_json()
    del value["group"], value["enlarged"]
    assert JudgedExample.from_json(value) == dataclasses.replace(EXAMPLE, group="drawn", enlarged=False)


def test_the_truth_comes_before_the_reward_models() -> None:
    assert SEGMENT.predicted == {"existence": 1, "attribute": 2}
    assert SEGMENT.verdicts == {"existence": 2, "attribute": 2}


def test_a_segment_that_nobody_judged_has_no_verdict() -> None:
    segment = dataclasses.replace(SEGMENT, labels=None, probabilities=None, rewards=None)
    assert (segment.predicted, segment.verdicts) == (None, {})
