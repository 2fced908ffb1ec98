import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgaif_ray.evaluation.hallucination import (
    Description,
    count_lengths,
    count_response,
    judge_segments,
    measure_counts,
    measure_descriptions,
)
from fgaif_ray.records import ABSENT, CONSISTENT, FACT_TYPES, HALLUCINATED
from fgaif_ray.shapes.scenes import Scene, SceneObject
from fgaif_ray.statistics.intervals import estimate_ratios

SCENE = Scene((SceneObject("circle", "red", "large", 0, 0), SceneObject("star", "blue", "small", 1, 2)), 0.0, 1)
TRUTHFUL = "There is a large red circle. There is a small blue star. The circle is above the star."


def describe(response, image="a.png", finished=True):
    return Description(image, SCENE, response, finished)


def test_a_truthful_and_complete_response_covers_all_and_hallucinates_nothing():
    counts = count_response(describe(TRUTHFUL))
    assert {name: counts[name] for name in ("existence", "attribute", "relation", "overall")} == {
        "existence": (0, 2),
        "attribute": (0, 2),
        "relation": (0, 1),
        "overall": (0, 3),
    }
    assert (counts["coverage_objects"], counts["coverage_attributes"], counts["coverage"]) == ((2, 2), (4, 4), (6, 6))


def test_a_sub_sentence_with_two_wrong_facts_of_a_type_counts_once():
    assert count_response(describe("There is a small green circle."))["attribute"] == (1, 1)


def test_a_sub_sentence_hallucinated_in_two_types_counts_once_overall():
    counts = count_response(describe("There is a purple heart. There is a red circle."))
    assert (counts["existence"], counts["attribute"], counts["overall"]) == ((1, 2), (1, 2), (1, 2))


def test_false_statements_cover_nothing():
    assert count_response(describe("There is a purple heart. There is a small ring."))["coverage"] == (0, 6)


def test_sub_sentences_without_statements_are_unreadable_and_in_no_rate():
    counts = count_response(describe("What a lovely picture this is. There is a red circle."))
    assert (counts["unreadable"], counts["overall"]) == ((1, 2), (0, 1))


def test_repeated_statements_are_counted_after_the_first():
    assert count_response(describe("There is a circle. I can see a circle. There is a star."))["repetition"] == (1, 3)


def test_an_empty_response_states_nothing():
    counts = count_response(describe("", finished=False))
    assert counts["facts_per_response"] == (0, 1)
    assert counts["unreadable"] == (0, 0)
    assert counts["unfinished"] == (1, 1)


def test_verdicts_cover_the_response_and_name_the_wrong_type():
    response = "There is a red circle. The circle is below the star."
    verdicts = judge_segments(SCENE, response)
    assert "".join(response[verdict.start : verdict.end] for verdict in verdicts) == response
    assert verdicts[0].labels == {"existence": CONSISTENT, "attribute": CONSISTENT, "relation": ABSENT}
    assert verdicts[1].labels == {"existence": ABSENT, "attribute": ABSENT, "relation": HALLUCINATED}


def test_rates_pool_sub_sentences_over_responses():
    metrics = measure_descriptions([describe(TRUTHFUL, "a.png"), describe("There is a green circle.", "b.png")])
    assert metrics["hallucination_rate"] == {
        "existence": 0.0,
        "attribute": pytest.approx(1 / 3),
        "relation": 0.0,
        "overall": pytest.approx(1 / 4),
    }
    assert metrics["responses"] == 2


def test_a_type_that_nobody_mentions_has_no_rate():
    metrics = measure_descriptions([describe("There is a circle.")])
    assert metrics["hallucination_rate"]["relation"] is None
    assert metrics["intervals"]["hallucination_rate"]["relation"] is None


def test_facts_are_counted_by_type():
    metrics = measure_descriptions(
        [describe("There is a red circle. The circle is left."), describe("There is a ring.")]
    )
    assert [metrics[f"{kind}_per_response"] for kind in FACT_TYPES] == [1.0, 0.5, 0.0]
    assert metrics["facts_per_response"] == 1.5


def test_no_responses_give_no_figures():
    metrics = measure_descriptions([])
    assert metrics["coverage"] is None
    assert metrics["responses"] == 0


def test_lengths_need_no_truth():
    metrics = measure_counts(count_lengths(["one two three", "one"], ["a", "b"], [True, False]))
    assert (metrics["words_per_response"], metrics["unfinished"]) == (2.0, 0.5)


def test_intervals_draw_images_not_rows():
    # Ten copies of each image's row say nothing new: the interval stays that of the single rows.
    generator = np.random.default_rng(0)
    parts = generator.integers(0, 2, 60).tolist()
    images = [f"{i}.png" for i in range(60)]
    single = estimate_ratios(images, {"rate": parts}, {"rate": [1] * 60})["rate"]
    copied = estimate_ratios(images * 10, {"rate": parts * 10}, {"rate": [1] * 600})["rate"]
    assert copied.interval == pytest.approx(single.interval)


def test_intervals_have_the_width_that_theory_gives():
    parts = [1] * 100 + [0] * 300
    low, high = estimate_ratios([str(i) for i in range(400)], {"rate": parts}, {"rate": [1] * 400})["rate"].interval
    half_width = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.1)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30), st.integers(0, 3))
def test_intervals_enclose_the_estimate_or_neither_is_defined(rows, seed):
    parts = [min(part, whole) for part, whole in rows]
    wholes = [whole for _, whole in rows]
    clusters = [str(i % 7) for i in range(len(rows))]
    estimate = estimate_ratios(clusters, {"rate": parts}, {"rate": wholes}, seed=seed, draws=100)["rate"]
    if sum(wholes) == 0:
        assert estimate.value is None and estimate.interval is None
    else:
        low, high = estimate.interval
        assert 0 <= low <= high <= 1


def test_figures_with_other_lengths_are_refused():
    with pytest.raises(ValueError, match="a part and a whole"):
        estimate_ratios(["a", "b"], {"rate": [1]}, {"rate": [1, 1]})
