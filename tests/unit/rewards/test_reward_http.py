"""What the reward service promises about every answer, over real HTTP, with its real models in this process."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.local_gateway import TOKEN, WEIGHTS, LocalScorer, local_gateway, served
from support.reward_helpers import PROMPT, RESPONSE, picture
from support.reward_service_helpers import assert_scores, error_of, offline_scores

from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rewards.scoring import ScoredBatch, ScoringBatch
from fgaif_ray.serving.client import RewardClient, reward_item

OPTIONS = RewardOptions(weights=WEIGHTS, value="expected")
HEADERS = {"authorization": f"Bearer {TOKEN}"}
BODY = {"items": [reward_item(picture(), PROMPT, RESPONSE).model_dump(exclude_none=True)]}
TEXTS = st.sampled_from(
    [RESPONSE, "A red circle.", "", "Nothing is here. " * 5, "A red circle is left of it, and a ring."]
)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> LocalScorer:
    return LocalScorer(tmp_path_factory.mktemp("rewards"))


@pytest.fixture(scope="module")
def client(scorer: LocalScorer) -> Iterator[RewardClient]:
    with served(local_gateway(scorer, OPTIONS)) as url, RewardClient(url, token=TOKEN) as client:
        yield client


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.integers(0, 50), TEXTS), min_size=1, max_size=18))
def test_a_score_is_the_same_alone_and_in_any_batch(
    client: RewardClient, scorer: LocalScorer, rows: list[tuple[int, str]]
) -> None:
    together = client.score([reward_item(picture(shade), PROMPT, text) for shade, text in rows])
    for (shade, text), scored in zip(rows, together, strict=True):
        assert scored.response == text
        # Another padding rounds otherwise, and the random adapters of these models amplify that.
        assert_scores(scored, offline_scores(scorer.model, picture(shade), text))


def test_a_model_that_gives_no_number_gives_no_answer(tmp_path: Path) -> None:
    broken = LocalScorer(tmp_path)
    with torch.no_grad():
        broken.model.heads["relation"].weight.fill_(float("nan"))
    with served(local_gateway(broken, OPTIONS)) as url:
        answer = httpx2.post(f"{url}/v1/rewards", json=BODY, headers=HEADERS)
        ready = httpx2.get(f"{url}/ready")
    assert error_of(answer) == (500, "scoring_failed")
    assert "nan" not in answer.text.lower()
    assert error_of(ready) == (503, "not_ready")


class HeldScorer(LocalScorer):
    """Scores nothing before it is let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.let_go = threading.Event()

    async def remote(self, batch: ScoringBatch) -> ScoredBatch:
        while not self.let_go.is_set():
            await asyncio.sleep(0.01)
        return await super().remote(batch)


def test_it_is_ready_after_a_forward_pass_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.rewards.gateway.PROBE_TIMEOUT_S", 0.5)
    scorer = HeldScorer(tmp_path)
    with served(local_gateway(scorer, OPTIONS)) as url:
        assert httpx2.get(f"{url}/live").status_code == 200
        before = httpx2.get(f"{url}/ready")
        monkeypatch.setattr("actors.rewards.gateway.PROBE_TIMEOUT_S", 60.0)  # a pass takes long on a busy machine
        scorer.let_go.set()
        assert httpx2.get(f"{url}/ready", timeout=60).status_code == 200
    assert error_of(before) == (503, "not_ready")
    assert int(before.headers["retry-after"]) >= 1


def test_rewards_that_take_too_long_are_given_up(tmp_path: Path) -> None:
    scorer = HeldScorer(tmp_path)
    with served(local_gateway(scorer, OPTIONS, timeout_s=0.5)) as url:
        answer = httpx2.post(f"{url}/v1/rewards", json=BODY, headers=HEADERS)
        scorer.let_go.set()
    assert error_of(answer) == (504, "timeout")
    assert int(answer.headers["retry-after"]) >= 1


def test_nothing_but_numbers_is_answered(client: RewardClient) -> None:
    [scored] = client.score([reward_item(picture(), PROMPT, RESPONSE)])
    assert all(
        np.isfinite([*segment.existence, *segment.attribute, *segment.relation]).all() for segment in scored.segments
    )


def test_below_a_prefix_the_same_routes_are_open(scorer: LocalScorer) -> None:
    """An application of another name is at `/name`: the prefix comes in the path and apart from it."""
    app = local_gateway(scorer, OPTIONS).__serve_build_asgi_app__()
    transport = httpx2.ASGITransport(app, root_path="/other")
    identified = {"x-request-id": "1"}

    async def statuses() -> list[int]:
        async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
            return [
                (await client.get("/other/live", headers=identified)).status_code,
                (await client.get("/other/v1/models", headers=identified)).status_code,
            ]

    assert asyncio.run(statuses()) == [200, 401]
