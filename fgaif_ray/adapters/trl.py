"""TRL: a reward function per fact type for `GRPOTrainer` (trl 1.16; `_calculate_rewards` in
`trl/trainer/grpo_trainer.py`).

Example:
    rewards = TRLRewards(RewardClient("http://127.0.0.1:8000"))
    GRPOTrainer(model, reward_funcs=rewards.functions, args=GRPOConfig(reward_weights=[1.0, 1.0, 1.0]), ...)
"""

from collections.abc import Callable, Sequence
from typing import Any

from fgaif_ray.adapters.common import Reduction, answer_text, chat_images, make_item, type_reward
from fgaif_ray.serving.client import ReplyOutcome, RewardClient, RewardServiceError

RewardFunction = Callable[..., list[float | None]]


class TRLRewards:
    """The reward functions of one trainer, one per fact type; they share one request per batch.

    Each gives, per completion, the mean over segments of P(consistent) - P(hallucinated) of its fact type, in
    -1..1 and without weight; TRL weighs them by `GRPOConfig.reward_weights`. TRL takes one number per completion, so
    which segment earned what is lost.

    A completion that the service refuses is None, which TRL leaves out of the group's baseline. No answer from the
    service, or a refusal of the whole batch, is an exception and stops the training.
    """

    def __init__(self, client: RewardClient, *, image_column: str | None = None, reduction: Reduction = "mean") -> None:
        """Prepare the functions; no request is made yet.

        Args:
            client: of the service.
            image_column: of the dataset; `image`, `images`, or the images in the prompts unless given.
            reduction: over the segments of a completion.
        """
        self._client, self._image_column, self._reduction = client, image_column, reduction
        self._scored: tuple[Any, Any, list[str], list[ReplyOutcome]] | None = None

    @property
    def functions(self) -> list[RewardFunction]:
        """For `GRPOTrainer(reward_funcs=...)`: one for each type that the service says it scores, in its order.

        Raises:
            RewardServiceError: the service gave no answer.
        """
        return [self.function(fact_type) for fact_type in self._client.fact_types()]

    def function(self, fact_type: str) -> RewardFunction:
        """The function of one fact type, named `existence_reward` or the like: TRL logs it under its name."""

        def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
            return self._rewards(fact_type, prompts, completions, columns)

        reward.__name__ = f"{fact_type}_reward"
        return reward

    def _rewards(
        self, fact_type: str, prompts: list[Any], completions: list[Any], columns: dict[str, Any]
    ) -> list[float | None]:
        outcomes = self._outcomes(prompts, completions, columns)
        return [
            None if isinstance(outcome, RewardServiceError) else type_reward(outcome, fact_type, self._reduction)
            for outcome in outcomes
        ]

    def _outcomes(self, prompts: list[Any], completions: list[Any], columns: dict[str, Any]) -> list[ReplyOutcome]:
        """Return the service's answer about the batch; the trainer calls all functions with the same lists."""
        texts = [answer_text(completion) for completion in completions]
        if self._scored is not None:
            of_prompts, of_completions, of_texts, outcomes = self._scored
            if of_prompts is prompts and of_completions is completions and of_texts == texts:
                return outcomes
        images = self._images(prompts, columns)
        items = [make_item(*row) for row in zip(images, prompts, texts, strict=True)]
        outcomes = self._client.score_each(items)
        refused = [outcome for outcome in outcomes if isinstance(outcome, RewardServiceError)]
        if refused and len(refused) == len(outcomes):
            raise refused[0]
        if "log_metric" in columns:
            columns["log_metric"]("fgaif/refused", len(refused) / max(len(outcomes), 1))
        self._scored = (prompts, completions, texts, outcomes)
        return outcomes

    def _images(self, prompts: Sequence[Any], columns: dict[str, Any]) -> Sequence[Any]:
        names = ("images", "image") if self._image_column is None else (self._image_column,)
        for name in names:
            if name in columns:
                images: Sequence[Any] = columns[name]
                return images
        if self._image_column is not None:
            raise ValueError(f"the dataset has no column {self._image_column!r}: it has {', '.join(columns)}")
        return [chat_images(prompt) for prompt in prompts]
