"""EasyR1: a batch reward function (EasyR1 0.3; `verl/workers/reward/function.py`).

EasyR1 shows a reward function neither image nor prompt, so `data.answer_key` names a column that holds both:
`{"image": path or data URL, "prompt": the question}`, or that as JSON text.
"""

from collections.abc import Sequence
from typing import Any, Final

from fgaif_ray.adapters.common import (
    Reduction,
    reference_item,
    reward_metrics,
    service_url,
    shared_client,
    total_reward,
)

REWARD_NAME: Final = "fgaif"
REWARD_TYPE: Final = "batch"


def compute_score(
    reward_inputs: Sequence[dict[str, Any]], url: str | None = None, reduction: Reduction = "mean"
) -> list[dict[str, float]]:
    """Reward a batch of responses.

    Args:
        reward_inputs: each with `response`, and the reference as `ground_truth`.
        url: root of the service; the environment variable FGAIF_REWARD_URL unless given
            (`worker.reward.reward_function_kwargs`).
        reduction: over the segments of a response.

    Returns:
        Per response `overall`, which EasyR1 gives at the last token: the weighted reward of all fact types, mean over
        segments. As metrics, under the name of each fact type, the mean of P(consistent) - P(hallucinated), and
        the number of segments, `segments`.

    Raises:
        RewardServiceError: the service could not or would not score them. EasyR1 has no masked rewards, so the
            training stops.
        ValueError: a reference has another form, or there is no URL.
    """
    items = [reference_item(entry["ground_truth"], entry["response"]) for entry in reward_inputs]
    client = shared_client(service_url(url))
    scored, types = client.score(items), client.fact_types()
    return [{"overall": total_reward(one, reduction), **reward_metrics(one, types, reduction)} for one in scored]
