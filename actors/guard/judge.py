"""The reward service as the guard asks it."""

from collections.abc import Sequence

from actors.rewards.service_error import ServiceError
from fgaif_ray.errors import ItemError
from fgaif_ray.guard.chat import ImageQuestion
from fgaif_ray.guard.judgement import AnswerJudgement, read_judgement
from fgaif_ray.rewards.kinds import COARSE
from fgaif_ray.serving.client import AsyncRewardClient, RetryPolicy, RewardServiceError
from fgaif_ray.serving.wire import MAX_RESPONSE_CHARACTERS, ModelList, RewardItem

RETRIES = RetryPolicy(max_retries=3, initial_s=0.2, maximum_s=5.0)
"""A person waits for the answer."""


class UnjudgedError(Exception):
    """An answer that cannot be judged; holds the error that a caller gets where that is refused."""

    def __init__(self, error: ServiceError) -> None:
        super().__init__(error)
        self.error = error


def unjudgeable(error: ItemError) -> UnjudgedError:
    """What a question amounts to that the reward models cannot read."""
    status = 413 if error.code == "image_too_large" else 422
    return UnjudgedError(ServiceError(status, error.code, str(error)))


class AnswerJudge:
    """Asks for verdicts."""

    def __init__(self, url: str, token: str | None, timeout_s: float) -> None:
        """Prepare without asking.

        Args:
            url: root of the reward service.
            token: bearer token; None for a service without one.
            timeout_s: longest wait for verdicts, of one try.
        """
        self._client = AsyncRewardClient(url, token=token, timeout_s=timeout_s, retries=RETRIES, concurrency=64)
        self._models: ModelList | None = None

    async def judge(self, question: ImageQuestion, answers: Sequence[str]) -> list[AnswerJudgement]:
        """Judge answers to one question, in order.

        Raises:
            UnjudgedError: the reward service refuses one of them or is not there.
        """
        if any(len(answer) > MAX_RESPONSE_CHARACTERS for answer in answers):
            reason = f"answers of more than {MAX_RESPONSE_CHARACTERS} characters are not judged"
            raise unjudgeable(ItemError("too_long", reason))
        items = [
            RewardItem(images=list(question.images), prompt=question.prompt, response=answer) for answer in answers
        ]
        try:
            scored = await self._client.score(items)
            models = await self._models_of(scored[0].model_version) if scored else None
        except RewardServiceError as error:
            raise UnjudgedError(_in_own_words(error)) from error
        if models is None:
            return []
        coarse, trained_on = models.kind == COARSE, models.trained_on
        return [read_judgement(one, coarse=coarse, trained_on=trained_on) for one in scored]

    async def _models_of(self, version: str) -> ModelList:
        """The reward models of a version, asked for when it changes."""
        if self._models is None or self._models.model_version != version:
            self._models = await self._client.models()
        return self._models

    async def is_ready(self) -> bool:
        """Tell whether the reward service can score."""
        return await self._client.is_ready()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def _in_own_words(error: RewardServiceError) -> ServiceError:
    """The error as the caller gets it; whatever is between guard and reward service is not the caller's doing."""
    if error.status in (413, 422):
        # The service names the item; the caller has sent one conversation.
        reason = str(error).partition(f"{error.code}: ")[2].partition(": ")[2] or error.code
        return ServiceError(error.status, error.code, f"the answer cannot be judged: {reason}")
    if error.status == 429:
        return ServiceError(429, "busy", "the reward service is busy: try again later", 1)
    if error.status == 504:
        return ServiceError(504, "timeout", "the verdicts were not ready in time")
    return ServiceError(502, "rewards_unavailable", "the reward service does not answer as it should")
