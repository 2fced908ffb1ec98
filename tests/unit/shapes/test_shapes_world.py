"""The embedded world: scenes, their language, and the truth about it."""

import random
from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgaif_ray.records import ABSENT, CONSISTENT, FACT_TYPES, HALLUCINATED
from fgaif_ray.segments import split_segments
from fgaif_ray.shapes.captions import NO_ERRORS, POLICY_ERRORS, ErrorRates, write_caption
from fgaif_ray.shapes.claims import RELATIONS, Claim, draw_claim
from fgaif_ray.shapes.oracle import label_claims, measure_coverage, read_claims
from fgaif_ray.shapes.render import IMAGE_SIZE, render
from fgaif_ray.shapes.scenes import UNSEEN_PAIRS, Scene, SceneObject, Split, draw_scene, draw_scenes

SCENE = Scene((SceneObject("circle", "red", "large", 0, 0), SceneObject("square", "green", "small", 1, 2)), 0.0, 1)


def claims_of(text: str) -> list[list[Claim]]:
    return read_claims(text, [(span.start, span.end) for span in split_segments(text)])


def hallucinated_shares(rates: ErrorRates, count: int = 400) -> dict[str, float]:
    generator = random.Random(0)
    wrong, carried = dict.fromkeys(FACT_TYPES, 0), dict.fromkeys(FACT_TYPES, 0)
    for scene in draw_scenes("train", range(count)):
        for segment in claims_of(write_caption(scene, rates, generator)):
            for kind, label in label_claims(scene, segment).items():
                wrong[kind] += label == HALLUCINATED
                carried[kind] += label != ABSENT
    return {kind: wrong[kind] / carried[kind] for kind in FACT_TYPES}


@pytest.mark.parametrize("split", get_args(Split))
def test_a_scene_is_the_same_every_time(split: Split) -> None:
    assert draw_scene(split, 5) == draw_scene(split, 5)
    assert draw_scene(split, 5) != draw_scene(split, 6)


def test_splits_differ() -> None:
    assert draw_scene("train", 0) != draw_scene("heldout", 0)


def test_unseen_pairs_occur_only_in_their_split() -> None:
    def pairs(split: Split) -> list[set[tuple[str, str]]]:
        return [{(item.shape, item.color) for item in scene.objects} for scene in draw_scenes(split, range(200))]

    assert not any(found & UNSEEN_PAIRS for found in pairs("train"))
    assert all(found & UNSEEN_PAIRS for found in pairs("unseen_pairs"))


def test_a_scene_reads_back() -> None:
    scene = draw_scene("fog", 3)
    assert Scene.from_dict(scene.to_dict()) == scene


def test_rendering_is_repeatable_and_varied() -> None:
    first = np.asarray(render(SCENE))
    assert first.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert np.array_equal(first, np.asarray(render(SCENE)))
    assert not np.array_equal(first, np.asarray(render(Scene(SCENE.objects, 0.0, 2))))


def test_fog_takes_contrast() -> None:
    clear, fogged = (np.asarray(render(Scene(SCENE.objects, fog, 1)), dtype=float).std() for fog in (0.0, 0.6))
    assert fogged < 0.7 * clear


@given(st.integers(0, 10_000))
def test_correct_captions_hold(index: int) -> None:
    scene = draw_scene("train", index)
    text = write_caption(scene, NO_ERRORS, random.Random(index))
    assert all(claim.holds(scene) for segment in claims_of(text) for claim in segment)


@given(st.integers(0, 10_000))
def test_every_sub_sentence_of_a_caption_is_readable(index: int) -> None:
    scene = draw_scene("train", index)
    assert all(claims_of(write_caption(scene, POLICY_ERRORS, random.Random(index))))


@pytest.mark.parametrize(
    "kind",
    [
        "existence",
        "attribute",
        "relation",
    ],
)
def test_planted_errors_reach_every_type_at_the_wanted_rates(kind: str) -> None:
    assert 0.15 <= hallucinated_shares(POLICY_ERRORS)[kind] <= 0.45


@pytest.mark.parametrize(
    ("rates", "kind"),
    [
        (ErrorRates(companion=0.7), "existence"),
        (ErrorRates(default_color=0.7), "attribute"),
        (ErrorRates(favoured_side=0.7), "relation"),
    ],
)
def test_each_systematic_error_reaches_its_type(rates: ErrorRates, kind: str) -> None:
    assert hallucinated_shares(rates)[kind] > 0.05


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There is a circle.", [["There is a circle."]]),
        (
            "I can see an orange star.",
            [["There is a star.", "The star is orange."]],
        ),
        ("A ring is visible. It is red and small.", [["There is a ring."], ["The ring is red.", "The ring is small."]]),
        (
            "There is a red circle, which is to the left of the square.",
            [["There is a circle.", "The circle is red."], ["The circle is to the left of the square."]],
        ),
        ("The star is above the circle.", [["The star is above the circle."]]),
        ("Nothing to report here.", [[]]),
    ],
)
def test_claims_are_read(text: str, expected: list[list[str]]) -> None:
    assert [[claim.statement() for claim in segment] for segment in claims_of(text)] == expected


@pytest.mark.parametrize(
    ("claim", "truth"),
    [
        (Claim("existence", "circle"), True),
        (Claim("existence", "star"), False),
        (Claim("attribute", "circle", "red"), True),
        (Claim("attribute", "circle", "small"), False),
        (Claim("attribute", "star", "red"), False),
        (Claim("relation", "circle", "left", "square"), True),
        (Claim("relation", "circle", "right", "square"), False),
        (Claim("relation", "circle", "above", "square"), True),
        (Claim("relation", "circle", "left", "star"), False),
    ],
)
def test_truth(claim: Claim, truth: bool) -> None:
    assert claim.holds(SCENE) is truth


@given(st.integers(0, 5000), st.sampled_from(FACT_TYPES), st.booleans())
def test_drawn_claims_have_the_truth_asked_for(index: int, kind: str, truth: bool) -> None:
    scene = draw_scene("train", index)
    assert draw_claim(scene, kind, truth, random.Random(index)).holds(scene) is truth


def test_one_wrong_fact_makes_a_sub_sentence_hallucinated() -> None:
    claims = [Claim("attribute", "circle", "red"), Claim("attribute", "circle", "small")]
    assert label_claims(SCENE, claims) == {"existence": ABSENT, "attribute": HALLUCINATED, "relation": ABSENT}


def test_coverage_counts_true_statements_once() -> None:
    text = "There is a large circle. There is a large circle. There is a blue square."
    coverage = measure_coverage(SCENE, claims_of(text))
    assert (coverage.objects_found, coverage.objects) == (2, 2)
    assert (coverage.attributes_found, coverage.attributes) == (1, 4)


def true_claims(scene: Scene) -> Iterator[Claim]:
    """Every claim that holds: one existence, one colour and one size per object, and each strict relation."""
    for item in scene.objects:
        yield Claim("existence", item.shape)
        yield Claim("attribute", item.shape, item.color)
        yield Claim("attribute", item.shape, item.size)
        for other in scene.objects:
            for value in RELATIONS:
                claim = Claim("relation", item.shape, value, other.shape)
                if other is not item and claim.holds(scene):
                    yield claim


def test_everything_true_covers_all() -> None:
    coverage = measure_coverage(SCENE, [list(true_claims(SCENE))])
    assert coverage.objects_found + coverage.attributes_found == coverage.objects + coverage.attributes


def test_a_correct_text_is_consistent() -> None:
    assert label_claims(SCENE, list(true_claims(SCENE))) == dict.fromkeys(FACT_TYPES, CONSISTENT)
