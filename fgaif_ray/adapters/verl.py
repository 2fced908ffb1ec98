"""verl: custom reward functions (verl 0.9; `verl/experimental/reward_loop/reward_manager/naive.py`).

verl shows a reward function no image, so the dataset's `extra_info` holds `image` (path, bytes or data URL, or a list
of them) and `question`; without these, `reward_model.ground_truth` holds both: `{"image": ..., "prompt": ...}`, or that
as JSON.

Take the reward manager `naive`, with which a failed request stops the training. `rate_limited` turns every exception
into a reward of zero, and so does `compute_score_timeout` of the older synchronous managers.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from fgaif_ray.adapters.common import (
    Reduction,
    make_item,
    reference_item,
    reward_metrics,
    service_url,
    shared_client,
    total_reward,
)
from fgaif_ray.serving.client import AsyncRewardClient
from fgaif_ray.serving.wire import RewardItem, ScoredResponse

CONCURRENCY: Final = 64
"""Requests in flight per process: verl asks for one response at a time, and the service batches them."""

_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, AsyncRewardClient]] = WeakKeyDictionary()


async def compute_score(
    data_source: str,  # noqa: ARG001 # verl calls by name
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str | None = None,
    reduction: Reduction = "mean",
    **_: Any,
) -> dict[str, float]:
    """Reward one response.

    Args:
        data_source: name of the dataset; unused.
        solution_str: the response.
        ground_truth: see above.
        extra_info: see above.
        url: root of the service; the environment variable FGAIF_REWARD_URL unless given
            (`reward.custom_reward_function.reward_kwargs`).
        reduction: over the segments of a response.

    Returns:
        `score`, which verl gives at the last token: the weighted reward of all fact types, mean over segments. As
        extra info, under the name of each fact type, the mean of P(consistent) - P(hallucinated), and the number of
        segments, `segments`.

    Raises:
        RewardServiceError: the service could not or would not score it.
        ValueError: image or question is missing, or there is no URL.
    """
    client = _client(service_url(url))
    [scored] = await client.score([_item(solution_str, ground_truth, extra_info)])
    return _score(scored, await client.fact_types(), reduction)


def compute_score_batch(
    data_sources: Sequence[str],  # noqa: ARG001
    solution_strs: Sequence[str],
    ground_truths: Sequence[Any],
    extra_infos: Sequence[Mapping[str, Any] | None],
    *,
    url: str | None = None,
    reduction: Reduction = "mean",
    **_: Any,
) -> list[dict[str, float]]:
    """Reward a batch of responses, for the synchronous reward manager `batch`; see `compute_score`."""
    rows = zip(solution_strs, ground_truths, extra_infos, strict=True)
    client = shared_client(service_url(url))
    scored = client.score([_item(*row) for row in rows])
    return [_score(one, client.fact_types(), reduction) for one in scored]


async def close() -> None:
    """Close the connections that `compute_score` opened on the running event loop."""
    for client in _clients.pop(asyncio.get_running_loop(), {}).values():
        await client.close()


def _client(url: str) -> AsyncRewardClient:
    """Return the client of the running event loop; connections belong to a loop, and a process may have several."""
    clients = _clients.setdefault(asyncio.get_running_loop(), {})
    if url not in clients:
        clients[url] = AsyncRewardClient(url, concurrency=CONCURRENCY)
    return clients[url]


def _item(response: str, ground_truth: Any, extra_info: Mapping[str, Any] | None) -> RewardItem:
    told = extra_info or {}
    if told.get("image") is not None and told.get("question") is not None:
        return make_item(told["image"], told["question"], response)
    return reference_item(ground_truth, response)


def _score(scored: ScoredResponse, fact_types: Sequence[str], reduction: Reduction) -> dict[str, float]:
    return {"score": total_reward(scored, reduction), **reward_metrics(scored, fact_types, reduction)}
