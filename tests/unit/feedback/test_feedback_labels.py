"""Verdicts, labels and the official label files."""

import io
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgaif_ray.feedback.labels import (
    LabelledResponse,
    is_consistent,
    segment_labels,
    to_official,
    write_official,
    yes_probability,
)
from fgaif_ray.records import ABSENT, CONSISTENT, FACT_TYPES, HALLUCINATED

log_probabilities = st.floats(min_value=-200, max_value=0)
labelled = st.lists(
    st.tuples(st.text(), st.tuples(*[st.sampled_from([ABSENT, CONSISTENT, HALLUCINATED])] * 3)), max_size=5
).flatmap(
    lambda pairs: st.builds(
        LabelledResponse,
        image=st.text(),
        segments=st.just(tuple(segment for segment, _ in pairs)),
        labels=st.just(tuple(labels for _, labels in pairs)),
    )
)


def test_a_type_without_facts_is_absent() -> None:
    assert segment_labels([], FACT_TYPES) == {"existence": ABSENT, "attribute": ABSENT, "relation": ABSENT}


def test_one_wrong_fact_makes_its_type_hallucinated_and_no_other() -> None:
    verdicts = [("existence", True), ("attribute", True), ("attribute", False), ("attribute", True)]
    assert segment_labels(verdicts, FACT_TYPES) == {
        "existence": CONSISTENT,
        "attribute": HALLUCINATED,
        "relation": ABSENT,
    }


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown fact type 'object'"):
        segment_labels([("object", True)], FACT_TYPES)


def test_variants_of_a_word_are_added() -> None:
    top = {
        "Yes": math.log(0.3),
        " yes": math.log(0.1),
        "▁YES": math.log(0.1),
        "ĠNo": math.log(0.2),
        "no": math.log(0.05),
        "Yesterday": math.log(0.2),
    }
    assert yes_probability(top) == pytest.approx(0.5 / 0.75)


@pytest.mark.parametrize(("top", "expected"), [({"yes": -3.0}, 1.0), ({"No": -3.0, "The": -0.1}, 0.0)])
def test_one_word_alone_is_certain(top: dict[str, float], expected: float) -> None:
    assert yes_probability(top) == expected


@pytest.mark.parametrize("top", [{}, {"The": -0.1, "I": -3.0}, {"yes": -math.inf}])
def test_neither_word_is_no_verdict(top: dict[str, float]) -> None:
    assert yes_probability(top) is None


@given(yes=log_probabilities, no=log_probabilities, shift=st.floats(-5000, 0))
@settings(deadline=None)
def test_only_the_ratio_counts_however_unlikely_both_are(yes: float, no: float, shift: float) -> None:
    probability = yes_probability({"yes": yes + shift, "no": no + shift})
    assert probability == pytest.approx(1 / (1 + math.exp(no - yes)), abs=1e-6)


@pytest.mark.parametrize(("probability", "verdict"), [(0.49, False), (0.5, True), (0.51, True)])
def test_the_threshold_itself_is_consistent(probability: float, verdict: bool) -> None:
    assert is_consistent(probability, 0.5) is verdict


def test_codes_in_the_official_form() -> None:
    assert [to_official(code) for code in (ABSENT, CONSISTENT, HALLUCINATED)] == [-1, 0, 1]


def test_the_official_form_is_as_published() -> None:
    stream = io.StringIO()
    row = LabelledResponse(("a.jpg",), ("A dog.",), ((CONSISTENT, HALLUCINATED, ABSENT),))
    write_official(stream, [row])
    assert stream.getvalue() == '{"image": "a.jpg", "sub": ["A dog."], "labels": [[0, 1, -1]]}\n'


def test_several_images_are_a_list_in_the_official_form() -> None:
    stream = io.StringIO()
    write_official(stream, [LabelledResponse(("a.jpg", "b.jpg"), ("A dog.",), ((CONSISTENT,),))])
    assert stream.getvalue() == '{"image": ["a.jpg", "b.jpg"], "sub": ["A dog."], "labels": [[0]]}\n'
