"""SkyRL: dense rewards for `GeneratorOutput.rewards` (SkyRL; `skyrl/train/generators/base.py`).

SkyRL takes a reward per token, so nothing of the dense reward is lost.

Example:
    class Experiment(BasePPOExp):
        def get_generator(self, cfg, tokenizer, inference_engine_client):
            inner = super().get_generator(cfg, tokenizer, inference_engine_client)
            return DenseRewardGenerator(inner, DenseRewards(AsyncRewardClient("http://127.0.0.1:8000"), tokenizer))
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fgaif_ray.adapters.common import chat_images, make_item
from fgaif_ray.adapters.placement import decode_response, place_rewards, service_options
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.serving.client import AsyncRewardClient
from fgaif_ray.serving.wire import RewardItem
from fgaif_ray.token_offsets import Decoder


class DenseRewards:
    """Token rewards of a generator's output."""

    def __init__(
        self,
        client: AsyncRewardClient,
        tokenizer: Decoder,
        *,
        image_column: str = "image",
        options: RewardOptions | None = None,
    ) -> None:
        """Prepare the rewards; no request is made yet.

        Args:
            client: of the service.
            tokenizer: of the policy; it need not be the one that the service knows.
            image_column: of the dataset, where the image is not part of the prompt's messages.
            options: weights and choices; those of the service unless given.
        """
        self._client, self._tokenizer = client, tokenizer
        self._image_column, self._options = image_column, options

    async def token_rewards(self, input_batch: Mapping[str, Any], output: Mapping[str, Any]) -> list[list[float]]:
        """Compute the dense rewards of a batch.

        Args:
            input_batch: `GeneratorInput`: `prompts` (chats), and `env_extras` (the dataset's other columns).
            output: `GeneratorOutput` with one turn per prompt: `response_ids`, `loss_masks`, `stop_reasons`.

        Returns:
            Per response `[response_tokens]`: at the last token of each segment the weighted sum of its
            rewards, zero elsewhere.

        Raises:
            RewardServiceError: the service could not or would not score them. SkyRL has no masked rewards.
            ValueError: there is not one response per prompt, or it holds tokens of the environment.
        """
        prompts, responses = input_batch["prompts"], output["response_ids"]
        if len(prompts) != len(responses):
            raise ValueError(f"{len(responses)} responses to {len(prompts)} prompts: train on single turns, not steps")
        for ids, mask in zip(responses, output["loss_masks"], strict=True):
            sampled = mask[:-1]  # the last token may be an EOS that the generator has put there
            if 0 in sampled and any(sampled):  # if all are masked, the generator has left the response out
                raise ValueError(f"a response of {len(ids)} tokens holds some that the policy did not sample")
        extras = input_batch.get("env_extras") or [{}] * len(prompts)
        items = [self._item(*row) for row in zip(prompts, extras, responses, strict=True)]
        if self._options is None:
            self._options = service_options(await self._client.models())
        scored = await self._client.score(items)
        reasons = output.get("stop_reasons") or ["stop"] * len(responses)
        return [
            place_rewards(one, ids, self._tokenizer, self._options, reason)
            for one, ids, reason in zip(scored, responses, reasons, strict=True)
        ]

    async def close(self) -> None:
        """Close the connections to the service."""
        await self._client.close()

    def _item(self, prompt: Any, extras: Mapping[str, Any], ids: Sequence[int]) -> RewardItem:
        image = chat_images(prompt)
        return make_item(
            extras.get(self._image_column) if image is None else image, prompt, decode_response(self._tokenizer, ids)
        )


class DenseRewardGenerator:
    """A SkyRL generator that wraps another one and takes its rewards from the service.

    SkyRL's `pass_at_n` looks only at the last token. With dense rewards, watch `reward/avg_raw_reward`, their sum.
    """

    def __init__(self, generator: Any, rewards: DenseRewards) -> None:
        self._generator, self._rewards = generator, rewards

    async def generate(self, input_batch: Mapping[str, Any], *arguments: Any, **options: Any) -> dict[str, Any]:
        """Return the `GeneratorOutput` of the wrapped generator, with token rewards in place of its own.

        Raises:
            RewardServiceError, ValueError: see `DenseRewards.token_rewards`.
        """
        output: dict[str, Any] = await self._generator.generate(input_batch, *arguments, **options)
        output["rewards"] = await self._rewards.token_rewards(input_batch, output)
        return output

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # before __init__ there is no wrapped generator
            raise AttributeError(name)
        return getattr(self._generator, name)
