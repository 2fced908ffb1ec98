"""Pay per fact: what counts of facts change in rewards, and how reward models come to estimate them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.labelled import segment_by_ai
from support.reward_helpers import save_reward_models, service_config
from support.reward_training import CHECKPOINT, OPTIONS, feedback_rows, train
from torch import Tensor
from transformers import AutoTokenizer

from actors.rewards.service import _gateway_settings
from fgaif_ray.adapters.placement import place_rewards
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.images import load_images
from fgaif_ray.records import ABSENT, CONSISTENT, FACT_TYPES, HALLUCINATED, Feedback, JudgedFact
from fgaif_ray.rewards.card import model_card
from fgaif_ray.rewards.composition import RewardOptions, compose_rewards, reward_segments
from fgaif_ray.rewards.data import RewardData, from_feedback, prepare_data
from fgaif_ray.rewards.encoding import ScoringItem
from fgaif_ray.rewards.fact_counts import Moments, bounded, fit, quality
from fgaif_ray.rewards.model_files import load_reward_model, save_reward_model
from fgaif_ray.rewards.preparation import segment_response, token_ends
from fgaif_ray.rewards.scale import RunningScale, moments
from fgaif_ray.rewards.scoring import compose_response
from fgaif_ray.serving.wire import ScoredResponse
from fgaif_ray.vlm.backbone import load_backbone
from fgaif_ray.vlm.group import LearnerGroup

ONE_TYPE = {"existence": 1.0}
PER_FACT = RewardOptions(weights=ONE_TYPE, unit="fact")
SEEN = {"absent": [1.0, 0.0, 0.0], "true": [0.0, 1.0, 0.0], "false": [0.0, 0.0, 1.0]}


def paid(*segments: tuple[str, float, float], options: RewardOptions = PER_FACT) -> float:
    """What segments earn of which these verdicts are certain: verdict, facts, false facts."""
    probabilities = torch.tensor([[SEEN[verdict]] for verdict, _, _ in segments])
    facts = torch.tensor([[[facts, false]] for _, facts, false in segments])
    return float(reward_segments(probabilities, options, facts).sum())


@pytest.mark.parametrize(("verdict", "expected"), [("absent", 0.0), ("true", 1.0), ("false", -1.0)])
def test_a_single_fact_earns_what_its_segment_earned(verdict: str, expected: float) -> None:
    assert paid((verdict, 1, 1)) == expected


def test_true_facts_earn_alike_in_one_clause_and_in_many() -> None:
    assert paid(("true", 3, 1)) == paid(*[("true", 1, 1)] * 3) == 3


def test_each_false_fact_of_a_clause_costs_and_the_true_ones_beside_it_earn() -> None:
    assert paid(("false", 4, 3)) == 1 - 3
    assert paid(("false", 4, 3)) == paid(("true", 1, 1), *[("false", 1, 1)] * 3)


def test_segments_are_paid_once_unless_facts_are_asked_for() -> None:
    assert paid(("true", 3, 1), options=replace(PER_FACT, unit="segment")) == 1


def test_the_most_probable_verdict_is_paid_per_fact_too() -> None:
    unsure, facts = torch.tensor([[[0.1, 0.3, 0.6]]]), torch.tensor([[[5.0, 2.0]]])
    assert reward_segments(unsure, replace(PER_FACT, value="argmax"), facts).tolist() == [[1.0]]


def test_what_a_repetition_takes_is_what_its_true_facts_earn() -> None:
    options = RewardOptions(weights={**ONE_TYPE, "novelty": 1.0}, unit="fact")
    repeats = torch.tensor([[SEEN["false"], SEEN["false"]]])
    earned = reward_segments(repeats, options, torch.tensor([[[3.0, 2.0], [1.0, 1.0]]]))
    assert earned.tolist() == [[-2.0, 0.0]]


def test_pay_per_fact_without_counts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trained with rewards\.fact_counts"):
        compose_rewards(torch.tensor([[SEEN["true"]]]), torch.tensor([0]), 1, "stop", PER_FACT)


def test_the_running_scale_is_of_what_facts_earn() -> None:
    scale = RunningScale("running_rms", 1, ("existence",))
    scale.add(moments([[[SEEN["true"]]]], PER_FACT, [[[[4.0, 1.0]]]]), LearnerGroup(torch.device("cpu")))
    assert scale.factors() == {"existence": 0.25}


# The estimates


def test_an_estimate_is_brought_to_what_is_possible() -> None:
    raw = torch.tensor([[-1.0, 7.0], [3.0, 0.2], [3.0, 2.5]])
    assert bounded(raw).tolist() == [[1.0, 1.0], [3.0, 1.0], [3.0, 2.5]]


def counted(seed: int, segments: int = 400) -> tuple[Tensor, Tensor]:
    """States in which one direction says how many facts there are, and their numbers."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, 5, (segments,), generator=generator)
    states = torch.randn(segments, 6, generator=generator)
    states[:, 2] = 0.5 * counts + 0.05 * states[:, 2]
    return states, counts


def test_parts_of_a_sum_make_the_whole_and_the_counts_are_found() -> None:
    states, counts = counted(0)
    whole, first, rest = (Moments.empty(6, torch.device("cpu")) for _ in range(3))
    whole.add(states, counts)
    first.add(states[:150], counts[:150])
    rest.add(states[150:], counts[150:])
    for name in ("outer", "cross", "square"):
        torch.testing.assert_close(getattr(first, name) + getattr(rest, name), getattr(whole, name))
    held_out = Moments.empty(6, torch.device("cpu"))
    held_out.add(*counted(1))
    found = quality(fit(whole, held_out), held_out)
    states, counts = counted(1)
    assert found["segments"] == 400 and found["mean"] == pytest.approx(float(counts.float().mean()))
    assert found["mean_predicted"] == pytest.approx(found["mean"], abs=0.02)
    assert found["deviation"] == pytest.approx(float(counts.float().std(correction=0)))
    assert found["error"] is not None and found["error"] < 0.15


def test_without_a_segment_to_learn_from_there_is_one_fact() -> None:
    nothing = Moments.empty(3, torch.device("cpu"))
    assert fit(nothing, nothing).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_segments_that_are_all_alike_have_their_mean() -> None:
    """As in a first try with few images, or with one segment that is no repetition."""
    alike = Moments.empty(3, torch.device("cpu"))
    alike.add(torch.tensor([[3e3, -7e3, 0.1]]).expand(4, -1), torch.tensor([1.0, 2.0, 3.0, 2.0]))
    weights = fit(alike, Moments.empty(3, torch.device("cpu")))
    assert alike.mean_of(weights) == pytest.approx(2.0)


def fact(consistent: bool, name: str = "existence") -> JudgedFact:
    return JudgedFact(type=name, text="x", p_consistent=float(consistent), consistent=consistent)


@pytest.mark.parametrize(
    ("label", "facts", "expected"),
    [
        (CONSISTENT, [True, True, True], (3, 1)),
        (HALLUCINATED, [True, False, False], (3, 2)),
        (HALLUCINATED, [True, True], (2, 1)),  # by noise: one of them has to be false
        (CONSISTENT, [], (1, 1)),  # by a person, who saw a fact where the extraction found none
    ],
)
def test_facts_are_counted_as_the_label_has_them(
    tmp_path: Path, label: int, facts: list[bool], expected: tuple[int, int]
) -> None:
    row = feedback_rows(tmp_path, images=1)[0]
    segment = segment_by_ai("A red ball.", (label, ABSENT, ABSENT), facts=tuple(map(fact, facts)))
    [response] = from_feedback([replace(row, segments=(segment,))], FACT_TYPES)
    assert response.facts["existence"] == (expected,)


def rows_with_facts(folder: Path) -> list[Feedback]:
    """The rows of ``feedback_rows``, in which a first segment states one fact, or three in other words."""
    rows = []
    for index, row in enumerate(feedback_rows(folder, images=24)):
        many = index % 4 > 1
        truth = row.segments[0].labels["existence"] == CONSISTENT
        text = "There is red, a wall of red, and red paint on it, " if many else "The whole image is red, "
        facts = (fact(truth),) * (3 if many else 1)
        rows.append(replace(row, segments=(replace(row.segments[0], text=text, facts=facts), row.segments[1])))
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RewardData:
    responses = from_feedback(rows_with_facts(tmp_path_factory.mktemp("images")), FACT_TYPES)
    return prepare_data(load_backbone(CHECKPOINT, "float32"), responses, 0.25, 0, lambda _: None)


def test_a_trained_reward_model_counts_facts_and_says_how_well(data: RewardData, tmp_path: Path) -> None:
    plain, _ = train(data, epochs=1)
    model, metrics = train(data, epochs=1, fact_counts=True)
    items = [
        ScoringItem(load_images(one.images), "Describe this image in detail.", [text, "and that is all there is."])
        for one in data.validation
        for text in ("There is red, a wall of red, and red paint on it, ", "The whole image is red, ")
    ]
    judged = model.judge(["existence"], items)
    many, one = (np.array([found[0, 0] for found in judged.facts["existence"][first::2]]) for first in (0, 1))
    assert many.mean() == pytest.approx(3, abs=0.3) and one.mean() == pytest.approx(1, abs=0.3)
    for with_counts, without in zip(judged.probabilities["existence"], plain.score("existence", items), strict=True):
        np.testing.assert_array_equal(with_counts, without)
    found = metrics["fact_counts"]
    assert found["facts"]["error"] < 0.5 * found["facts"]["deviation"]
    assert found["false_facts"]["segments"] < found["facts"]["segments"] == len(data.validation)
    assert "facts in a segment that has any" in model_card(metrics, OPTIONS)

    save_reward_model(model, "existence", tmp_path / "existence")
    loaded = load_reward_model(load_backbone(CHECKPOINT, "float32"), {"existence": str(tmp_path / "existence")})
    for before, after in zip(
        judged.facts["existence"], loaded.judge(["existence"], items).facts["existence"], strict=True
    ):
        np.testing.assert_array_equal(before, after)


# On the way to whoever pays


def test_a_scored_response_carries_what_others_need_to_pay_facts() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    ids = tokenizer.encode("There is a red circle. It is above a square.", add_special_tokens=False)
    response = segment_response(tokenizer, None, ids)
    options = RewardOptions(weights=dict.fromkeys(FACT_TYPES, 1.0), unit="fact")
    probabilities = {name: np.array([SEEN["true"], SEEN["false"]], np.float32) for name in FACT_TYPES}
    facts = {name: np.array([[2.0, 1.0], [3.0, 2.0]], np.float32) for name in FACT_TYPES}
    ends = token_ends(tokenizer, response)
    scored = compose_response(response, probabilities, ends, options, "v", facts)
    assert [segment.reward for segment in scored.segments] == [6.0, -3.0]
    received = ScoredResponse.model_validate_json(scored.model_dump_json())
    assert place_rewards(received, ids, tokenizer, options) == scored.token_rewards
    assert sum(scored.token_rewards or ()) == 3.0


def test_an_answer_without_counts_has_no_such_field() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    response = segment_response(tokenizer, "A red circle.", None)
    probabilities = {name: np.array([SEEN["true"]], np.float32) for name in FACT_TYPES}
    scored = compose_response(response, probabilities, None, RewardOptions(weights=dict.fromkeys(FACT_TYPES, 1.0)), "v")
    assert "facts" not in scored.model_dump()["segments"][0]


def changed(tmp_path: Path, **sections: Any) -> Config:
    tree = service_config(tmp_path).model_dump(mode="json")
    for name, values in sections.items():
        tree[name] |= values
    return Config.model_validate(tree)


def test_facts_cannot_be_paid_where_they_are_not_counted(tmp_path: Path) -> None:
    reward = {"reward": {"unit": "fact"}}
    with pytest.raises(ValueError, match=r"rewards\.fact_counts=true: set it"):
        changed(tmp_path, align=reward)
    config = changed(tmp_path, align=reward, rewards={"fact_counts": True})
    with pytest.raises(UserError, match="these reward models do not count facts"):
        _gateway_settings(config, save_reward_models(tmp_path))


def test_verdicts_on_whole_responses_count_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"leave rewards\.fact_counts at false"):
        changed(tmp_path, rewards={"fact_counts": True, "kind": "coarse"})
