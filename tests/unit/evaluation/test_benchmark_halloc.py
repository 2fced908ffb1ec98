"""HalLoc: marked characters become segments, and verdicts on segments are ranked and counted by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.benchmark_files import HALLOC_TEXT, halloc_mark, write_halloc

from fgaif_ray.config import HalLocConfig
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.benchmarks.base import MarkedResponse
from fgaif_ray.evaluation.benchmarks.halloc import HalLoc, marked_segments, said_spans

DOT = HALLOC_TEXT.index(".")
"""Where the first segment ends."""


def benchmark(tmp_path: Path, **settings: object) -> HalLoc:
    return HalLoc(HalLocConfig.model_validate({"path": write_halloc(tmp_path / "halloc"), **settings}))


def verdict(*hallucinated: float) -> NDArray[np.float32]:
    """Probabilities of segments, ``[segments, 3]``."""
    return np.array([[0.0, 1 - p, p] for p in hallucinated], np.float32)


def marked(response: MarkedResponse, kind: str) -> list[bool]:
    return marked_segments(said_spans(response.text), response.errors.get(kind, ()))


def measured(halloc: HalLoc, verdicts: dict[str, dict[str, NDArray[np.float32]]]) -> dict[str, Any]:
    return halloc.measure(verdicts)[1]


def value(found: dict[str, Any], name: str) -> float:
    return float(found["figures"][name]["value"])


def test_a_marked_word_marks_its_segment(tmp_path: Path) -> None:
    response = benchmark(tmp_path).responses[1]
    assert marked(response, "attribute") == [True, False]
    assert marked(response, "object") == [False, True]
    assert marked(response, "scene") == [False, False]


@pytest.mark.parametrize(
    ("span", "touched"),
    [
        ((0, 1), [True, False]),
        ((DOT, DOT + 1), [True, False]),
        ((DOT + 1, DOT + 2), [False, False]),  # the space behind the first segment
        ((DOT, DOT + 3), [True, True]),
        ((DOT + 2, DOT + 3), [False, True]),
    ],
)
def test_a_mark_touches_the_segments_that_it_has_characters_of(span: tuple[int, int], touched: list[bool]) -> None:
    response = MarkedResponse("1", "1", "Describe it.", HALLOC_TEXT, {"object": (span,)})
    assert marked(response, "object") == touched


def test_verdicts_are_measured_by_the_reward_model_of_the_type(tmp_path: Path) -> None:
    halloc = benchmark(tmp_path)  # texts 1 and 3 are marked
    verdicts = {
        one.id: {"existence": verdict(0.1, p), "attribute": verdict(0.9, 0.2), "relation": verdict(0.3, 0.3)}
        for one, p in zip(halloc.responses, (0.2, 0.9, 0.8, 0.7), strict=True)
    }
    found = measured(halloc, verdicts)
    assert found["answers"] == 8
    # Objects: positives .9 and .7; negatives .2 and .8, and four of .1.
    assert value(found, "object.auroc") == pytest.approx(11 / 12)
    assert value(found, "object.average_precision") == pytest.approx((1 + 2 / 3) / 2)
    assert value(found, "object.recall") == 1.0
    assert value(found, "object.precision") == pytest.approx(2 / 3)
    assert value(found, "object.f1") == pytest.approx(0.8)
    assert value(found, "object.balanced_accuracy") == pytest.approx((1 + 5 / 6) / 2)
    assert value(found, "object.share") == 0.25
    # Attributes: the first segment of every text scores .9, whether it is marked or not.
    assert value(found, "attribute.auroc") == pytest.approx((4 + 2 / 2) / 6)


def test_all_errors_are_compared_with_the_highest_of_the_reward_models(tmp_path: Path) -> None:
    halloc = benchmark(tmp_path)
    right = {
        one.id: {"existence": verdict(0.1, 0.9 * (n % 2)), "attribute": verdict(0.9 * (n % 2), 0.1)}
        for n, one in enumerate(halloc.responses)
    }
    assert value(measured(halloc, right), "all.auroc") == 1.0


def test_a_type_without_a_reward_model_is_left_out(tmp_path: Path) -> None:
    halloc = benchmark(tmp_path)
    found = measured(halloc, {one.id: {"existence": verdict(0.1, 0.9)} for one in halloc.responses})
    kinds = {name.partition(".")[0] for name in found["figures"]}
    assert kinds == {"object", "all"}


def test_intervals_draw_images(tmp_path: Path) -> None:
    halloc = benchmark(tmp_path)
    found = measured(halloc, {one.id: {"existence": verdict(0.1, 0.9)} for one in halloc.responses})
    low, high = found["figures"]["object.share"]["interval"]
    assert low < 0.25 < high


def test_responses_that_were_not_judged_are_counted(tmp_path: Path) -> None:
    halloc = benchmark(tmp_path)
    found = measured(halloc, {halloc.responses[1].id: {"existence": verdict(0.1, 0.9)}})
    assert (found["answers"], found["counts"]["unjudged"]) == (2, 3)


def test_no_verdict_leaves_every_metric_undefined(tmp_path: Path) -> None:
    assert {figure["value"] for figure in measured(benchmark(tmp_path), {})["figures"].values()} == {None}


def test_texts_without_marks_have_nothing_to_rank(tmp_path: Path) -> None:
    halloc = benchmark(tmp_path, limit=1)
    found = measured(halloc, {halloc.responses[0].id: {"existence": verdict(0.1, 0.9)}})
    assert (value(found, "all.share"), found["figures"]["all.auroc"]["value"]) == (0.0, None)


def test_prompts_lose_the_place_of_the_image(tmp_path: Path) -> None:
    assert {one.prompt for one in benchmark(tmp_path).responses} == {"Describe the image."}


@pytest.mark.parametrize(("settings", "texts"), [({"split": "test"}, 2), ({"limit": 1}, 1), ({}, 4)])
def test_a_part_can_be_taken(tmp_path: Path, settings: dict[str, object], texts: int) -> None:
    assert len(benchmark(tmp_path, **settings).responses) == texts


@pytest.mark.parametrize(
    ("index", "touched"), [("15", [True, False]), (f"{len(HALLOC_TEXT) - 1}:{len(HALLOC_TEXT)}", [False, True])]
)
def test_marks_of_one_character_and_at_the_end(tmp_path: Path, index: str, touched: list[bool]) -> None:
    response = changed(tmp_path, {"object": [{"obj": {"name": "x", "char_index": index}}]}).responses[0]
    assert marked(response, "object") == touched


def test_marks_whose_name_stands_elsewhere_are_counted(tmp_path: Path) -> None:
    mark = halloc_mark("obj", "square")
    mark["obj"]["name"] = "circle"
    halloc = changed(tmp_path, {"object": [mark]})
    assert measured(halloc, {})["counts"]["misplaced"] == 1


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"object": [{"obj": {"name": "a"}}]}, "a mark without a char_index"),
        ({"object": [{"obj": {"char_index": "a:b"}}]}, "a mark without a char_index"),
        ({"object": [{"obj": {"char_index": "1:2:3"}}]}, "a mark without a char_index"),
        ({"object": ["square"]}, "a mark without a char_index"),
        ({"object": [{"obj": {"char_index": "90:99"}}]}, "marks characters 90:99 of 93"),
        ({"object": [{"obj": {"char_index": "9:9"}}]}, "marks characters 9:9"),
    ],
)
def test_marks_of_another_form_are_refused(tmp_path: Path, annotations: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        changed(tmp_path, annotations)


def test_a_split_that_does_not_occur_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no entry is of the split 'val'"):
        benchmark(tmp_path, split="val")


def changed(tmp_path: Path, annotations: dict[str, Any]) -> HalLoc:
    """The benchmark with other annotations of its first text."""
    file = Path(write_halloc(tmp_path / "halloc")) / "halloc_caption.json"
    rows = json.loads(file.read_text())
    rows[0]["annotations"] = annotations
    file.write_text(json.dumps(rows))
    return HalLoc(HalLocConfig(path=str(file.parent)))
