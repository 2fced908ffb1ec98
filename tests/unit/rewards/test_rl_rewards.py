"""Class probabilities to token rewards. `mistake_N` tests: faults of the reference code."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fgaif_ray.records import ABSENT, CONSISTENT, FACT_TYPES, HALLUCINATED
from fgaif_ray.rewards.composition import (
    Granularity,
    RewardOptions,
    RewardValue,
    compose_rewards,
    reward_segments,
    segment_rewards,
    token_rewards,
)

ONES = dict.fromkeys(FACT_TYPES, 1.0)


def probabilities_of(*segments: tuple[int, int, int]) -> Tensor:
    """Certain probabilities `[segments, types, classes]` from class codes."""
    return torch.nn.functional.one_hot(torch.tensor(segments, dtype=torch.int64).view(-1, 3), 3).float()


def test_argmax_gives_plus_one_minus_one_and_zero() -> None:
    probabilities = torch.tensor([[[0.2, 0.5, 0.3], [0.1, 0.4, 0.5], [0.5, 0.3, 0.2]]])
    assert segment_rewards(probabilities, ONES, "argmax").tolist() == [[1.0, -1.0, 0.0]]


def test_expected_is_the_difference_of_probabilities() -> None:
    probabilities = torch.tensor([[[0.2, 0.5, 0.3], [0.1, 0.4, 0.5], [0.5, 0.3, 0.2]]])
    torch.testing.assert_close(segment_rewards(probabilities, ONES, "expected"), torch.tensor([[0.2, -0.1, 0.1]]))


@pytest.mark.parametrize(("false_cost", "earned"), [(0.5, [0.35, 0.15, 0.2]), (2.0, [-0.1, -0.6, -0.1])])
def test_a_false_statement_costs_what_it_is_said_to_cost(false_cost: float, earned: list[float]) -> None:
    probabilities = torch.tensor([[[0.2, 0.5, 0.3], [0.1, 0.4, 0.5], [0.5, 0.3, 0.2]]])
    options = RewardOptions(weights=ONES, false_cost=false_cost)
    torch.testing.assert_close(reward_segments(probabilities, options), torch.tensor([earned]))


@pytest.mark.parametrize("false_cost", [0.5, 1.0, 2.0, 3.0])
def test_a_statement_pays_above_the_probability_that_its_cost_asks_for(false_cost: float) -> None:
    limit = false_cost / (1 + false_cost)
    options = RewardOptions(weights={"existence": 1.0}, false_cost=false_cost)
    for true, pays in ((limit + 0.01, True), (limit - 0.01, False)):
        assert bool(reward_segments(torch.tensor([[[0.0, true, 1 - true]]]), options) > 0) == pays


def test_the_weights_name_the_types_in_the_order_of_the_probabilities() -> None:
    weights = {"relation": 5.0, "existence": 2.0, "attribute": 0.0}
    probabilities = probabilities_of((HALLUCINATED, CONSISTENT, CONSISTENT))
    assert segment_rewards(probabilities, weights, "argmax").tolist() == [[-5.0, 2.0, 0.0]]


@pytest.mark.parametrize("weights", [{"existence": 1.0}, {**ONES, "colour": 1.0}])
def test_there_is_a_weight_for_each_type(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="probabilities must be"):
        segment_rewards(probabilities_of((CONSISTENT, CONSISTENT, HALLUCINATED)), weights)


def test_a_reward_without_types_is_refused() -> None:
    with pytest.raises(ValueError, match="fact types"):
        RewardOptions(weights={})


def test_a_probability_that_is_not_finite_is_refused() -> None:
    probabilities = probabilities_of((ABSENT, ABSENT, ABSENT))
    probabilities[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        segment_rewards(probabilities, ONES)


def test_mistake_3_a_response_with_one_segment_is_rewarded() -> None:
    composed = compose_rewards(
        probabilities_of((CONSISTENT, CONSISTENT, ABSENT)), torch.tensor([2]), 4, "stop", RewardOptions(weights=ONES)
    )
    assert composed.per_type.shape == (1, 3)
    assert composed.per_token.tolist() == [0.0, 0.0, 2.0, 0.0]


def test_mistake_5_spans_that_end_on_one_token_add_up() -> None:
    rewards = token_rewards(torch.tensor([1.0, 2.0, -0.5]), torch.tensor([3, 3, 1]), 4)
    assert rewards.tolist() == [0.0, -0.5, 0.0, 3.0]


def test_mistake_7_a_response_that_never_ends_is_penalised_on_its_last_token() -> None:
    options = RewardOptions(weights=ONES, missing_eos_penalty=1.5)
    probabilities, ends = probabilities_of((CONSISTENT, ABSENT, ABSENT)), torch.tensor([2])
    assert compose_rewards(probabilities, ends, 3, "length", options).per_token.tolist() == [0.0, 0.0, -0.5]
    assert compose_rewards(probabilities, ends, 3, "stop", options).per_token.tolist() == [0.0, 0.0, 1.0]


def test_mistake_7_tokens_beyond_the_target_cost() -> None:
    options = RewardOptions(weights=ONES, length_penalty=0.25, length_target=3)
    probabilities, ends = probabilities_of((CONSISTENT, ABSENT, ABSENT)), torch.tensor([2])
    assert compose_rewards(probabilities, ends, 3, "stop", options).per_token.tolist() == [0.0, 0.0, 1.0]
    rewards = compose_rewards(probabilities, ends, 5, "stop", options).per_token
    assert rewards.tolist() == [0.0, 0.0, 1.0, -0.25, -0.25]


def test_with_one_reward_per_response_the_length_costs_at_its_end() -> None:
    options = RewardOptions(
        weights=ONES, length_penalty=0.25, length_target=1, granularity="response", missing_eos_penalty=1.0
    )
    rewards = compose_rewards(probabilities_of((CONSISTENT, ABSENT, ABSENT)), torch.tensor([1]), 3, "length", options)
    assert rewards.per_token.tolist() == [0.0, 0.0, 1.0 - 1.0 - 0.5]


@pytest.mark.parametrize("granularity", ["segment", "response"])
def test_mistake_7_normalised_rewards_do_not_pay_for_length(granularity: Granularity) -> None:
    options = RewardOptions(weights=ONES, normalise_by_segments=True, granularity=granularity)
    for count in (1, 2, 7):
        probabilities = probabilities_of(*[(CONSISTENT, CONSISTENT, CONSISTENT)] * count)
        rewards = compose_rewards(probabilities, torch.arange(count), count, "stop", options).per_token
        assert rewards.sum().item() == pytest.approx(3.0)


@pytest.mark.parametrize(("normalise", "paid"), [(False, 1.0), (True, 0.5)])
def test_response_granularity_pays_the_same_on_the_last_token(normalise: bool, paid: float) -> None:
    options = RewardOptions(weights=ONES, granularity="response", normalise_by_segments=normalise)
    probabilities = probabilities_of((CONSISTENT, CONSISTENT, ABSENT), (HALLUCINATED, ABSENT, ABSENT))
    composed = compose_rewards(probabilities, torch.tensor([1, 3]), 6, "stop", options)
    assert composed.per_token.tolist() == [0.0, 0.0, 0.0, 0.0, 0.0, paid]


@pytest.mark.parametrize("granularity", ["segment", "response"])
def test_a_response_that_says_nothing_earns_nothing(granularity: Granularity) -> None:
    options = RewardOptions(weights=ONES, granularity=granularity, normalise_by_segments=True)
    composed = compose_rewards(torch.zeros(0, 3, 3), torch.zeros(0, dtype=torch.int64), 2, "stop", options)
    assert composed.per_token.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("end", [-1, 4])
def test_token_ends_outside_the_response_are_refused(end: int) -> None:
    with pytest.raises(ValueError, match="lie outside a response of 4 tokens"):
        token_rewards(torch.ones(1), torch.tensor([end]), 4)


def test_a_negative_penalty_is_refused() -> None:
    with pytest.raises(ValueError, match="missing_eos_penalty"):
        RewardOptions(weights=ONES, missing_eos_penalty=-1.0)
    with pytest.raises(ValueError, match="length_penalty"):
        RewardOptions(weights=ONES, length_penalty=-0.1)


CLASS_CODE = st.sampled_from([ABSENT, CONSISTENT, HALLUCINATED])


@settings(deadline=None)
@given(
    st.lists(st.tuples(CLASS_CODE, CLASS_CODE, CLASS_CODE, st.integers(0, 19)), min_size=1, max_size=12),
    st.tuples(*[st.sampled_from([0.0, 0.5, 1.0, 2.0])] * 3),
    st.sampled_from(["expected", "argmax"]),
)
def test_mistake_8_tokens_receive_the_weighted_rewards_and_no_hidden_factor(
    segments: list[tuple[int, int, int, int]], weights: tuple[float, float, float], value: RewardValue
) -> None:
    options = RewardOptions(weights=dict(zip(FACT_TYPES, weights, strict=True)), value=value)
    ends = [segment[3] for segment in segments]
    signs = {ABSENT: 0.0, CONSISTENT: 1.0, HALLUCINATED: -1.0}
    expected = [0.0] * 20
    for *codes, end in segments:
        expected[end] += sum(weight * signs[code] for weight, code in zip(weights, codes, strict=True))
    probabilities = probabilities_of(*[segment[:3] for segment in segments])
    composed = compose_rewards(probabilities, torch.tensor(ends), 20, "stop", options)
    assert composed.per_token.tolist() == expected


WITH_NOVELTY = {**ONES, "novelty": 1.0}


def judged(consistent: float, hallucinated: float, repeats: float) -> torch.Tensor:
    """One segment: every type alike, and how likely it repeats, ``[1, 4, 3]``."""
    verdict = [1 - consistent - hallucinated, consistent, hallucinated]
    return torch.tensor([[verdict] * 3 + [[0.0, 1 - repeats, repeats]]])


@pytest.mark.parametrize(
    ("weight", "expected"), [(1.0, [0.6 * 0.25 - 0.3] * 3), (0.5, [0.6 * 0.625 - 0.3] * 3), (0.0, [0.6 - 0.3] * 3)]
)
def test_a_repetition_earns_less_for_truth_and_as_little_for_falsehood(weight: float, expected: list[float]) -> None:
    found = segment_rewards(judged(0.6, 0.3, 0.75), WITH_NOVELTY | {"novelty": weight}, "expected")
    torch.testing.assert_close(found, torch.tensor([[*expected, 0.0]]))


def test_novelty_by_itself_earns_nothing() -> None:
    found = segment_rewards(judged(0.0, 0.0, 0.0), WITH_NOVELTY, "expected")
    assert found.count_nonzero() == 0


@pytest.mark.parametrize(
    ("segment", "expected"), [((0.9, 0.0, 0.9), 0.0), ((0.0, 0.9, 0.9), -1.0), ((0.9, 0.0, 0.1), 1.0)]
)
def test_the_most_probable_verdicts_are_gated_alike(segment: tuple[float, float, float], expected: float) -> None:
    found = segment_rewards(judged(*segment), WITH_NOVELTY, "argmax")
    assert found.tolist() == [[expected] * 3 + [0.0]]
