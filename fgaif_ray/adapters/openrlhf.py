"""OpenRLHF: a reward function for `--reward.remote_url FILE.py` (OpenRLHF 0.11; `openrlhf/utils/agent.py`).

OpenRLHF passes no images to rewards, so the dataset's label (`--data.label_key`) holds image and question:
`{"image": path, data URL or base64, "prompt": the question}`, or that as JSON text.

The service speaks OpenRLHF's HTTP protocol too (`--reward.remote_url http://HOST:PORT/get_reward`), with the same
answers. The function adds what that route cannot do: a bearer token, images as paths, back-off, and policies with
another tokenizer.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from fgaif_ray.adapters.common import reference_item
from fgaif_ray.serving.client import RewardClient
from fgaif_ray.serving.remote_reward import remote_answer, split_query


class OpenRLHFRewards:
    """A reward function `reward_func(queries, prompts, labels)`.

    A failed request raises. OpenRLHF logs that and goes on without a reward for the sample, which it then cannot
    train on. It stops with an error and never takes a zero.
    """

    def __init__(self, client: RewardClient, special_tokens: Sequence[str]) -> None:
        """Prepare the function; no request is made yet.

        Args:
            client: of the service; threads may share it, and OpenRLHF calls from several.
            special_tokens: of the policy's tokenizer (`tokenizer.all_special_tokens`), which `queries` still hold.
        """
        self._client, self._special_tokens = client, list(special_tokens)

    @cached_property
    def _weights(self) -> dict[str, float]:
        return self._client.models().weights

    def __call__(self, queries: list[str], prompts: list[str], labels: list[Any], **_: Any) -> dict[str, Any]:
        """Reward responses.

        Args:
            queries: decoded prompt and response of each sample, special tokens included.
            prompts: prompts with the chat template applied.
            labels: see above.

        Returns:
            `rewards`, `[samples]` tensor: the sum of the segments' weighted rewards, which OpenRLHF gives at the
            last token. `scores`, `[samples]` tensor: their mean, brought to 0..1, for dynamic filtering. `extra_logs`:
            for each fact type the mean weighted reward, and the number of segments.

        Raises:
            RewardServiceError: the service could not or would not score them.
            ValueError: a label has another form, or a query does not begin with its prompt.
        """
        import torch

        rows = zip(queries, prompts, labels, strict=True)
        items = [
            reference_item(label, split_query(query, prompt, self._special_tokens)) for query, prompt, label in rows
        ]
        answer = remote_answer(self._client.score(items), self._weights)
        return {
            "rewards": torch.tensor(answer.rewards),
            "scores": torch.tensor(answer.scores),
            "extra_logs": {name: torch.tensor(values) for name, values in answer.extra_logs.items()},
        }
