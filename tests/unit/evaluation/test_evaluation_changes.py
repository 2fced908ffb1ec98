"""What an evaluation says alignment has changed: paired, and in agreement with the metrics of both policies."""

import random
from typing import Any

import pytest
from support.report_run import answer_row

from fgaif_ray.config import Config, load_config
from fgaif_ray.evaluation.comparison import measure
from fgaif_ray.evaluation.pope import FIGURES, STRATEGIES, build_questions, score_splits
from fgaif_ray.evaluation.pope_changes import compare_splits
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.shapes.captions import NO_ERRORS, POLICY_ERRORS, write_caption
from fgaif_ray.shapes.scenes import draw_scene

IMAGES = 12
SCENES = {f"{index}.png": draw_scene("heldout", index) for index in range(IMAGES)}
OBJECTS = {name: [one.shape for one in scene.objects] for name, scene in SCENES.items()}
SPLITS = {str(strategy): build_questions(OBJECTS, strategy) for strategy in STRATEGIES}


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config("configs/shapes.yaml")


def answers(prompt: str = "Describe.") -> list[Any]:
    generator = random.Random(0)
    return [
        answer_row(which, task, image, prompt, write_caption(scene, errors, generator))
        for which, errors in (("before", POLICY_ERRORS), ("after", NO_ERRORS))
        for task in ("sampled", "greedy")
        for image, scene in SCENES.items()
    ]


def pope_answers(accuracy: float, seed: int) -> dict[tuple[str, str], str]:
    generator = random.Random(seed)
    return {
        (one.image, one.text): "Yes" if one.label == (generator.random() < accuracy) else "No"
        for split in SPLITS.values()
        for one in split
    }


@pytest.mark.parametrize("task", ["sampled", "greedy"])
def test_changes_are_the_differences_of_the_metrics(config: Config, task: str) -> None:
    metrics = measure(config, answers(), SCENES, {})
    before, after = (metrics[which] if task == "sampled" else metrics[which]["greedy"] for which in ("before", "after"))
    changes = metrics["changes"][task]
    for kind in (*FACT_TYPES, "overall"):
        expected = after["hallucination_rate"][kind] - before["hallucination_rate"][kind]
        assert changes["hallucination_rate"][kind]["value"] == pytest.approx(expected)
    assert changes["coverage"]["value"] == pytest.approx(after["coverage"] - before["coverage"])


def test_errors_that_are_gone_are_a_clear_change(config: Config) -> None:
    change = measure(config, answers(), SCENES, {})["changes"]["sampled"]["hallucination_rate"]["overall"]
    assert change["interval"][1] < 0


def test_lengths_change_without_a_truth(config: Config) -> None:
    metrics = measure(config, answers(), None, {})
    expected = metrics["after"]["words_per_response"] - metrics["before"]["words_per_response"]
    assert metrics["changes"]["sampled"]["words_per_response"]["value"] == pytest.approx(expected)
    assert "hallucination_rate" not in metrics["changes"]["sampled"]


def test_pope_changes_are_the_differences_of_its_metrics() -> None:
    before, after = pope_answers(0.6, 1), pope_answers(0.9, 2)
    found = compare_splits(SPLITS, before, after)
    scores = [score_splits(SPLITS, said) for said in (before, after)]
    for figure in FIGURES:
        assert found[figure]["value"] == pytest.approx(scores[1][figure] - scores[0][figure])
        for name in SPLITS:
            expected = scores[1]["splits"][name][figure] - scores[0]["splits"][name][figure]
            assert found["splits"][name][figure]["value"] == pytest.approx(expected)


def test_equal_answers_to_pope_change_nothing_for_sure() -> None:
    said = pope_answers(0.8, 3)
    assert compare_splits(SPLITS, said, said)["f1"] == {"value": 0, "interval": [0, 0]}
