"""The load of the soak test, on the real gateway and reward models in this process."""

import asyncio
from collections.abc import Iterator

import pytest
from support.local_gateway import WEIGHTS, LocalScorer, local_gateway, served
from support.reward_helpers import PROMPT, RESPONSE, picture

from benchmarks.rewards import SMALL_REQUEST
from benchmarks.soak_service import capacity, steady
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.serving.client import reward_item

REQUESTS = [reward_item(picture(), PROMPT, RESPONSE)] * (2 * SMALL_REQUEST)
SECONDS = 0.5


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    scorer = LocalScorer(tmp_path_factory.mktemp("rewards"))
    with served(local_gateway(scorer, RewardOptions(weights=WEIGHTS, value="expected"))) as url:
        yield url


def outcomes_of(url: str, monkeypatch: pytest.MonkeyPatch, refused_every: int) -> dict[str, int]:
    monkeypatch.setattr("benchmarks.soak_service.REFUSED_EVERY", refused_every)
    return dict(asyncio.run(steady(url, REQUESTS, 10.0 * SMALL_REQUEST, SECONDS)))


def test_responses_are_scored(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = outcomes_of(url, monkeypatch, 1000)
    assert set(outcomes) == {"scored"} and outcomes["scored"] % SMALL_REQUEST == 0


def test_what_the_service_has_to_refuse_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(outcomes_of(url, monkeypatch, 1)) == {"refused"}


def test_a_service_that_is_gone_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(outcomes_of("http://127.0.0.1:9", monkeypatch, 1)) == {"failed"}


def test_the_capacity_is_what_was_scored_after_the_warm_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.soak_service.SATURATED_S", 1.0)
    assert asyncio.run(capacity(url, REQUESTS)) >= 1
