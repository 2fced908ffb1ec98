"""A deployed reward service beside its models offline, and what its tests say to it."""

import io
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np
from PIL import Image
from ray import serve
from transformers import AutoTokenizer

from actors.rewards import service as reward_service
from fgaif_ray.config import Config
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.encoding import ScoringItem
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.rewards.scoring import ResponseVerdicts
from fgaif_ray.segments import split_segments
from fgaif_ray.serving.client import RewardClient, reward_item
from fgaif_ray.serving.wire import ScoredResponse
from support.reward_helpers import CHECKPOINT, PROMPT, picture

TOKEN = "a-token-of-the-tests"
TOKENIZER = AutoTokenizer.from_pretrained(CHECKPOINT)


@dataclass
class Service:
    config: Config
    folders: dict[str, str]
    info: reward_service.RewardServiceInfo
    model: RewardModel
    """The same reward models, offline."""

    def post(self, path: str = "/v1/rewards", **options: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {TOKEN}", **options.pop("headers", {})}
        return httpx2.post(self.info.url + path, headers=headers, timeout=60, **options)

    def client(self) -> RewardClient:
        return RewardClient(self.info.url, token=TOKEN)

    def through_handle(self, items: list[dict[str, Any]]) -> list[ResponseVerdicts | None]:
        handle = serve.get_app_handle(self.info.app_name)
        scored: list[ResponseVerdicts | None] = handle.score_responses.remote(items).result(timeout_s=60)
        return scored

    def over_http(self, items: list[dict[str, Any]]) -> list[ScoredResponse]:
        with self.client() as client:
            return client.score([reward_item(*item.values()) for item in items])

    def offline(self, data: bytes, text: str) -> dict[str, np.ndarray]:
        return offline_scores(self.model, data, text)


def offline_scores(model: RewardModel, data: bytes, text: str) -> dict[str, np.ndarray]:
    """Probabilities of each type, `[segments, 3]`."""
    segments = [text[span.start : span.end] for span in split_segments(text)]
    item = ScoringItem([Image.open(io.BytesIO(data)).convert("RGB")], PROMPT, segments)
    return {fact_type: model.score(fact_type, [item])[0] for fact_type in FACT_TYPES}


def handle_items(texts: list[str], with_ids: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "image": picture(index),
            "prompt": PROMPT,
            "response": text,
            "response_token_ids": TOKENIZER.encode(text, add_special_tokens=False) if with_ids else None,
        }
        for index, text in enumerate(texts)
    ]


def error_of(answer: httpx2.Response) -> tuple[int, str]:
    """Status and code of an error, whose shape is always the same."""
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"code", "message", "request_id"}
    assert body["error"]["request_id"] == answer.headers["x-request-id"]
    return answer.status_code, body["error"]["code"]


def assert_verdicts(verdicts: ResponseVerdicts | None, expected: dict[str, np.ndarray], atol: float = 1e-4) -> None:
    assert verdicts is not None
    for fact_type in FACT_TYPES:
        np.testing.assert_allclose(verdicts.probabilities[fact_type], expected[fact_type], atol=atol)


def assert_scores(scored: ScoredResponse, expected: dict[str, np.ndarray], atol: float = 1e-4) -> None:
    """Of the same model. Rounding depends on what else is in a batch: 1e-5 was exceeded once by 5 %."""
    for fact_type in FACT_TYPES:
        triples = np.array([getattr(segment, fact_type) for segment in scored.segments]).reshape(-1, 3)
        np.testing.assert_allclose(triples, expected[fact_type], atol=atol)
