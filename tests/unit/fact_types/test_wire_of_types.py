"""The service's answers: those for the default types as they always were, others of the same shape."""

import json
from typing import Any

import httpx2
import pytest
import yaml
from support.counting import COUNTING

from actors.rewards.http import build_app
from fgaif_ray.fact_types import DEFAULT, parse_fact_type
from fgaif_ray.serving.client import RewardServiceError
from fgaif_ray.serving.client_session import REWARDS, parse_results
from fgaif_ray.serving.wire import RewardResponse, ScoredResponse, SegmentReward

GOLDEN = (
    '{"results":[{"response":"A dog.","segments":[{"start":0,"end":6,"token_end":null,"existence":[0.1,0.8,0.1],'
    '"attribute":[0.9,0.05,0.05],"relation":[1.0,0.0,0.0],"rewards":{"existence":0.7,"attribute":0.0,"relation":0.0},'
    '"reward":0.7}],"reward":0.7,"token_rewards":[0.0,0.7],"model_version":"v"}],"model_version":"v","request_id":"i"}'
)
"""Written by the release before types were data."""
PROBABILITIES = {"existence": (0.1, 0.8, 0.1), "attribute": (0.9, 0.05, 0.05), "relation": (1.0, 0.0, 0.0)}
COUNTING_TYPE = parse_fact_type(yaml.safe_load(COUNTING))


def answer(probabilities: dict[str, tuple[float, float, float]], rewards: dict[str, float]) -> str:
    segment = SegmentReward(
        start=0, end=6, token_end=None, probabilities=probabilities, rewards=rewards, reward=sum(rewards.values())
    )
    scored = ScoredResponse(
        response="A dog.", segments=[segment], reward=0.7, token_rewards=[0.0, 0.7], model_version="v"
    )
    return RewardResponse(results=[scored], model_version="v", request_id="i").model_dump_json()


def schema_of_segments(*types: Any) -> dict[str, Any]:
    app = build_app(object(), None, lambda *_: None, types)  # type: ignore[arg-type]
    schema: dict[str, Any] = app.openapi()["components"]["schemas"]["SegmentReward"]
    return schema


def test_answers_about_the_default_types_are_the_same_bytes() -> None:
    assert answer(PROBABILITIES, {"existence": 0.7, "attribute": 0.0, "relation": 0.0}) == GOLDEN


def test_an_answer_reads_back() -> None:
    read = RewardResponse.model_validate_json(GOLDEN)
    assert read.results[0].segments[0].probabilities == PROBABILITIES
    assert read.results[0].segments[0].existence == PROBABILITIES["existence"]
    assert read.model_dump_json() == GOLDEN


def test_another_type_is_a_field_like_the_others() -> None:
    segment = json.loads(answer({"counting": (0.0, 1.0, 0.0)}, {"counting": 1.0}))["results"][0]["segments"][0]
    assert list(segment) == ["start", "end", "token_end", "counting", "rewards", "reward"]


def test_the_client_takes_the_types_that_the_service_names() -> None:
    reply = httpx2.Response(200, content=answer({"counting": (0.0, 1.0, 0.0)}, {"counting": 1.0}))
    assert parse_results(reply, 1, REWARDS)[0].segments[0].probabilities == {"counting": (0.0, 1.0, 0.0)}


def test_a_reward_without_its_probabilities_is_refused() -> None:
    reply = httpx2.Response(200, content=GOLDEN.replace('"attribute":[0.9,0.05,0.05],', ""))
    with pytest.raises(RewardServiceError, match="attribute"):
        parse_results(reply, 1, REWARDS)


def test_a_type_that_there_is_not_is_no_attribute() -> None:
    segment = RewardResponse.model_validate_json(GOLDEN).results[0].segments[0]
    with pytest.raises(AttributeError, match="counting"):
        _ = segment.counting


def test_the_interface_names_the_types_of_the_service() -> None:
    default, own = schema_of_segments(*DEFAULT), schema_of_segments(*DEFAULT, COUNTING_TYPE)
    assert list(default["properties"]) == [*default["required"], "facts"]
    assert default["required"][3:] == ["existence", "attribute", "relation", "rewards", "reward"]
    assert own["properties"]["counting"] == default["properties"]["existence"] | {"title": "Counting"}
