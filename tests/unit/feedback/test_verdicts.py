"""Two verifiers: what rows, labels and figures say where they differ, and what reward models make of it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.labelled import response

from fgaif_ray.config import LabelConfig, NoiseConfig
from fgaif_ray.fact_types import DEFAULT
from fgaif_ray.feedback.labels import segment_labels
from fgaif_ray.feedback.metrics import FeedbackMetrics
from fgaif_ray.feedback.overrides import Overrides
from fgaif_ray.feedback.verdicts import Disagreements, Labeller, masked_types
from fgaif_ray.records import (
    CONSISTENT,
    FACT_TYPES,
    HALLUCINATED,
    Feedback,
    JudgedFact,
    VerifiedFact,
    VerifiedSegment,
)
from fgaif_ray.rewards.data import IGNORED, from_feedback

HALF = dict.fromkeys(FACT_TYPES, 0.5)
NONE = Overrides({}, NoiseConfig())


def label(labeller: Labeller, *facts: tuple[str, float, float | None]) -> Feedback:
    """A labelled response of one segment; facts are type, P(yes), and the second's."""
    given = tuple(
        VerifiedFact(type=kind, text=f"fact {place}", p_consistent=first, second_p_consistent=second)
        for place, (kind, first, second) in enumerate(facts)
    )
    return labeller.label(response("a", "A."), [VerifiedSegment(start=0, end=2, text="A.", facts=given)])


def labels_of(found: Feedback) -> Any:
    return found.segments[0].labels


def masking(overrides: Overrides = NONE) -> Labeller:
    return Labeller(HALF, HALF, True, overrides, "{}", DEFAULT)


def test_each_type_has_its_threshold() -> None:
    thresholds = {"existence": 0.2, "attribute": 0.5, "relation": 0.9}
    facts = [("existence", 0.3, None), ("attribute", 0.3, None), ("relation", 0.8, None)]
    found = label(Labeller(thresholds, None, False, NONE, "{}", DEFAULT), *facts)
    assert labels_of(found) == {"existence": CONSISTENT, "attribute": HALLUCINATED, "relation": HALLUCINATED}


def test_a_second_verdict_is_kept_and_changes_no_label_unless_masked() -> None:
    found = label(Labeller(HALF, {**HALF, "existence": 0.1}, False, NONE, "{}", DEFAULT), ("existence", 0.8, 0.2))
    (fact,) = found.segments[0].facts
    assert (fact.consistent, fact.second_p_consistent, fact.second_consistent) == (True, 0.2, True)
    found = label(Labeller(HALF, HALF, False, NONE, "{}", DEFAULT), ("existence", 0.8, 0.2))
    assert labels_of(found)["existence"] == CONSISTENT


def test_without_a_second_verifier_its_fields_are_empty() -> None:
    (fact,) = label(Labeller(HALF, None, False, NONE, "{}", DEFAULT), ("existence", 0.8, 0.2)).segments[0].facts
    assert fact.second_p_consistent is None and fact.second_consistent is None


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ([("existence", 0.8, 0.2)], None),
        ([("existence", 0.2, 0.8)], None),
        ([("existence", 0.8, 0.2), ("existence", 0.1, 0.1)], HALLUCINATED),  # wrong whatever the other is
        ([("existence", 0.8, 0.2), ("existence", 0.9, 0.9)], None),
        ([("existence", 0.8, 0.9), ("relation", 0.8, 0.2)], CONSISTENT),
        ([("existence", 0.8, None)], CONSISTENT),
    ],
)
def test_a_label_that_hangs_on_a_disagreement_is_masked(facts: list[Any], code: int | None) -> None:
    assert labels_of(label(masking(), *facts))["existence"] == code


@given(st.lists(st.tuples(st.sampled_from(FACT_TYPES), st.booleans(), st.booleans()), max_size=6))
def test_a_label_that_is_not_masked_is_that_of_either_verifier(facts: list[tuple[str, bool, bool]]) -> None:
    masked = masked_types(
        [
            JudgedFact(type=kind, text="", p_consistent=0.5, consistent=first, second_consistent=second)
            for kind, first, second in facts
        ]
    )
    by_first = segment_labels([(kind, first) for kind, first, _ in facts], FACT_TYPES)
    by_second = segment_labels([(kind, second) for kind, _, second in facts], FACT_TYPES)
    for name in FACT_TYPES:
        if name not in masked:
            assert by_first[name] == by_second[name]


def test_a_masked_label_keeps_the_ais_and_has_no_source() -> None:
    (segment,) = label(masking(), ("existence", 0.8, 0.2)).segments
    assert segment.ai_labels["existence"] == CONSISTENT
    assert segment.label_sources["existence"] is None


def test_people_decide_what_verifiers_cannot() -> None:
    human = Overrides({("a", 0): ("A.", {"existence": HALLUCINATED})}, NoiseConfig())
    assert labels_of(label(masking(human), ("existence", 0.8, 0.2)))["existence"] == HALLUCINATED


def test_noise_leaves_masked_labels_alone() -> None:
    noise = Overrides({}, NoiseConfig.model_validate({"existence": {"to_hallucinated": 1, "to_consistent": 1}}))
    assert labels_of(label(masking(noise), ("existence", 0.8, 0.2)))["existence"] is None


def test_labelling_again_gives_the_same_row() -> None:
    labeller = masking()
    once = label(labeller, ("existence", 0.8, 0.2), ("relation", 0.3, 0.4))
    assert labeller.label(once.response, once.segments) == once


def test_reward_models_do_not_learn_masked_labels() -> None:
    (learnt,) = from_feedback([label(masking(), ("existence", 0.8, 0.2), ("relation", 0.9, 0.9))], FACT_TYPES)
    assert (learnt.labels["existence"], learnt.labels["relation"]) == ((IGNORED,), (CONSISTENT,))


def test_masked_labels_are_counted_by_themselves() -> None:
    figures = FeedbackMetrics(FACT_TYPES, lambda _: [dict.fromkeys(FACT_TYPES, CONSISTENT)])
    figures.add(label(masking(), ("existence", 0.8, 0.2)))
    found = figures.to_dict()
    assert found["labels_masked"] == {"existence": 1, "attribute": 0, "relation": 0}
    assert sum(found["labels"]["existence"].values()) == found["agreement"]["existence"]["count"] == 0
    assert found["labels_replaced"]["existence"] == 0


def test_disagreements_are_counted_by_type() -> None:
    counted = Disagreements(FACT_TYPES)
    facts = [("existence", 0.9, 0.9), ("existence", 0.9, 0.1), ("existence", 0.1, 0.1), ("existence", 0.2, 0.1)]
    labeller = Labeller(HALF, HALF, False, NONE, "{}", DEFAULT)
    counted.add(label(labeller, *facts, ("relation", 0.1, 0.9), ("relation", 0.5, None)))
    found = counted.to_dict()
    assert (found["existence"]["facts"], found["existence"]["disagreements"]) == (4, 1)
    assert found["existence"]["share"] == pytest.approx(0.25)
    assert found["existence"]["kappa"] == pytest.approx(0.5)
    assert (found["relation"]["only_second_says_right"], found["relation"]["unanswered"]) == (1, 1)
    assert found["all"]["disagreements"] == 2
    assert found["attribute"]["share"] is None


def test_masking_needs_two_verifiers() -> None:
    extractor = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}
    with pytest.raises(ValueError, match=r"needs label\.second_verifier"):
        LabelConfig.model_validate({"extractor": extractor, "verifier": {"model": "v"}, "disagreement": "mask"})
