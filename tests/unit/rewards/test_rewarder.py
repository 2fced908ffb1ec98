"""The learner's way to its rewards: verdicts through the gateway's handle, composed once, by the learner."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import serve
from support.local_gateway import TOKEN, WEIGHTS, LocalScorer, local_gateway, served
from support.reward_helpers import RESPONSE
from support.reward_service_helpers import TOKENIZER, handle_items

from actors.alignment.rewarder import Rewarder, TypeVerdicts
from actors.rewards.gateway import RewardGateway
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rl.trajectories import Trajectory, reward_trajectory
from fgaif_ray.serving.client import RewardClient, reward_item

RESPONSES = [RESPONSE, "A red circle.", "", "There is nothing here. " * 6]
OPTIONS = RewardOptions(weights=WEIGHTS, missing_eos_penalty=0.25, length_penalty=0.125, length_target=8)
"""The learner's; the service has others."""


class Handle:
    """The gateway's handle, in this process."""

    def __init__(self, gateway: RewardGateway) -> None:
        self._gateway = gateway
        self.score_responses = self

    def remote(self, items: list[dict[str, Any]]) -> "Handle":
        self._answers = asyncio.run(self._gateway.score_responses(items))
        return self

    def result(self, timeout_s: float) -> list[Any]:
        return self._answers


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> RewardGateway:
    scorer = LocalScorer(tmp_path_factory.mktemp("rewards"))
    return local_gateway(scorer, RewardOptions(weights=dict.fromkeys(FACT_TYPES, 3.0)))


@pytest.fixture
def asked(gateway: RewardGateway, monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict[str, Any]], list[TypeVerdicts]]:
    """Items, and what the learner gets for them."""
    monkeypatch.setattr(serve, "get_app_handle", lambda name: Handle(gateway))
    items = [item for item in handle_items(RESPONSES) if item["response_token_ids"]]
    return items, Rewarder("rewards", 60.0, len(items), FACT_TYPES).score(items)


def rewarded(
    item: dict[str, Any], verdicts: TypeVerdicts, probabilities: Sequence[Any], options: RewardOptions = OPTIONS
) -> Trajectory:
    trajectory = Trajectory(
        sample_id="a",
        image="a.png",
        prompt=item["prompt"],
        token_ids=tuple(item["response_token_ids"]),
        behaviour_log_probs=(-1.0,) * len(item["response_token_ids"]),
        finish_reason="length",
        policy_version=0,
        response=verdicts.response,
        segment_spans=verdicts.spans,
        token_ends=verdicts.token_ends,
    )
    return reward_trajectory(trajectory, probabilities, options, verdicts.facts)


def test_the_learner_gets_the_very_verdicts_that_http_clients_get(
    gateway: RewardGateway, asked: tuple[list[dict[str, Any]], list[TypeVerdicts]]
) -> None:
    items, learnt = asked
    with served(gateway) as url, RewardClient(url, token=TOKEN) as client:
        over_http = client.score([reward_item(*item.values()) for item in items])
    for item, verdicts, scored in zip(items, learnt, over_http, strict=True):
        probabilities = tuple(tuple(getattr(segment, name) for name in FACT_TYPES) for segment in scored.segments)
        assert verdicts.response == scored.response
        assert verdicts.spans == tuple((segment.start, segment.end) for segment in scored.segments)
        assert verdicts.token_ends == tuple(segment.token_end for segment in scored.segments)
        # Bit for bit: what is learnt must not depend on the way that verdicts came.
        assert verdicts.probabilities is not None
        assert rewarded(item, verdicts, verdicts.probabilities) == rewarded(item, verdicts, probabilities)


def test_rewards_are_weighted_by_the_learner_not_by_the_service(
    asked: tuple[list[dict[str, Any]], list[TypeVerdicts]],
) -> None:
    items, [first, *_] = asked
    assert first.probabilities is not None
    expected = [
        tuple(WEIGHTS[name] * (types[place][1] - types[place][2]) for place, name in enumerate(FACT_TYPES))
        for types in first.probabilities
    ]
    given = rewarded(items[0], first, first.probabilities).per_type_rewards
    assert given is not None and [pytest.approx(row) for row in expected] == list(given)


def test_what_cannot_be_scored_is_refused_and_the_others_are_not(
    gateway: RewardGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "get_app_handle", lambda name: Handle(gateway))
    items = handle_items([RESPONSE] * 3)
    items[1]["response_token_ids"] = [len(TOKENIZER)]
    verdicts = Rewarder("rewards", 60.0, 3, FACT_TYPES).score(items)
    assert [verdict.refused for verdict in verdicts] == [False, True, False]


def test_the_learner_gets_counts_of_facts_in_the_order_of_its_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = LocalScorer(tmp_path)
    for place, name in enumerate(FACT_TYPES):
        weights = {"weight": torch.zeros(2, scorer.model.backbone.hidden_size), "bias": torch.tensor([place + 2.0, 2])}
        scorer.model.set_fact_counts(name, weights)
    monkeypatch.setattr(
        serve,
        "get_app_handle",
        lambda name: Handle(local_gateway(scorer, RewardOptions(weights=dict.fromkeys(FACT_TYPES, 1.0)))),
    )
    [item] = handle_items([RESPONSE])
    [verdict] = Rewarder("rewards", 60.0, 4, FACT_TYPES[::-1]).score([item])
    assert verdict.facts is not None and set(verdict.facts) == {((4.0, 2.0), (3.0, 2.0), (2.0, 2.0))}
    options = RewardOptions(weights=dict.fromkeys(FACT_TYPES[::-1], 1.0), unit="fact")
    assert verdict.probabilities is not None
    earned = rewarded(item, verdict, verdict.probabilities, options).per_type_rewards
    expected = [
        [true * facts + false * (facts - 4) for (_, true, false), facts in zip(segment, (4, 3, 2), strict=True)]
        for segment in verdict.probabilities
    ]
    np.testing.assert_allclose(earned, expected, rtol=1e-6)
