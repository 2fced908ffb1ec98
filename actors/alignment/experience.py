"""The source of a learner worker's responses: images and prompts are drawn, sampled by the rollout workers, and sent to
the reward service at once. All of it runs in the background, so that the learner may do something else.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
from PIL.Image import Image
from ray.actor import ActorHandle

from actors.alignment.rewarder import Rewarder, TypeVerdicts
from actors.alignment.rollout import PolicyVersion, RefusedRollout, Rollout, RolloutRequest, sample
from fgaif_ray import storage
from fgaif_ray.errors import UserError
from fgaif_ray.images import decode_image
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rl.plan import Draw
from fgaif_ray.rl.trajectories import Trajectory, reward_trajectory
from fgaif_ray.vlm.front_end import FrontEnd

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sampled:
    """One worker's responses of a step; their rewards may still be on the way."""

    draws: tuple[Draw, ...]
    images: tuple[Image, ...]
    """``[responses]``; responses to one image share the object."""
    rollouts: tuple[Rollout, ...]
    verdicts: "Future[tuple[list[TypeVerdicts], float]]"
    """``[responses]``, and the seconds that the reward service took."""
    unreadable: int
    """Draws left out because their image cannot be read, or does not fit the engine."""
    version: PolicyVersion
    began: float
    ended: float
    """Start and end of the sampling alone, on ``time.monotonic``'s clock."""
    sync_seconds: float
    """Seconds of loading the version, if it was asked for."""

    def trajectories(self, verdicts: Sequence[TypeVerdicts], options: RewardOptions) -> list[Trajectory]:
        """Return the responses with the reward models' verdicts, where these are available."""
        trajectories = []
        for draw, rollout, verdict in zip(self.draws, self.rollouts, verdicts, strict=True):
            trajectory = Trajectory(
                sample_id=draw.sample_id,
                image=draw.image,
                prompt=draw.prompt,
                token_ids=rollout.token_ids,
                behaviour_log_probs=rollout.log_probs,
                finish_reason=rollout.finish_reason,
                policy_version=rollout.policy_version,
                response=verdict.response,
                segment_spans=verdict.spans,
                token_ends=verdict.token_ends,
                reward_failure=verdict.failure,
            )
            if verdict.probabilities is not None:
                trajectory = reward_trajectory(trajectory, verdict.probabilities, options)
            trajectories.append(trajectory)
        return trajectories


class ExperienceSource:
    """Sampling and scoring in the background, one batch after the other."""

    def __init__(self, front_end: FrontEnd, workers: Sequence[ActorHandle[Any]], rewarder: Rewarder) -> None:
        """Start two threads: one for sampling, one for rewards.

        Args:
            front_end: tokenizes prompts, in the caller's thread.
            workers: rollout workers.
            rewarder: asks the reward service.
        """
        self._front_end, self._workers, self._rewarder = front_end, workers, rewarder
        self._sampling = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollouts")
        self._asking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rewards")

    def start(self, draws: Sequence[Draw], version: PolicyVersion, *, sync: bool = False) -> "Future[Sampled]":
        """Begin a batch.

        Args:
            draws: at least one.
            version: the policy that samples.
            sync: have every rollout worker load it first, apart from the sampling; otherwise they do so by themselves.

        Returns:
            Its result raises UserError where none of the images can be read.
        """
        # A tokenizer is not safe in two threads at once, and the learner uses it for its own passes.
        prompt_ids = {prompt: self._front_end.prompt_ids(prompt) for prompt in {draw.prompt for draw in draws}}
        return self._sampling.submit(self._sample, tuple(draws), prompt_ids, version, sync)

    def probe(
        self, draws: Sequence[Draw], version: PolicyVersion
    ) -> tuple[tuple[Draw, ...], list[Image], tuple[Rollout, ...]]:
        """Sample a few responses at once, without rewards, from every rollout worker in turn.

        Returns:
            What was drawn of it, the images, and the responses, ``[responses]`` each.

        Raises:
            UserError: none of the images can be read, or none suits the engine.
        """
        wanted, opened = _readable(draws)
        requests = [
            RolloutRequest(self._front_end.prompt_ids(one.prompt), opened[one.image][0], one.seed) for one in wanted
        ]
        kept, rollouts = _answered(wanted, sample(self._workers, requests, version))
        return kept, [opened[draw.image][1] for draw in kept], rollouts

    def close(self) -> None:
        """Release the threads without waiting for what is under way."""
        for pool in (self._sampling, self._asking):
            pool.shutdown(wait=False, cancel_futures=True)

    def _sample(
        self, wanted: tuple[Draw, ...], prompt_ids: dict[str, tuple[int, ...]], version: PolicyVersion, sync: bool
    ) -> Sampled:
        draws, opened = _readable(wanted)
        sync_began = time.monotonic()
        if sync:
            ray.get([worker.serve.remote(version) for worker in self._workers])
        began = time.monotonic()
        requests = [RolloutRequest(prompt_ids[draw.prompt], opened[draw.image][0], draw.seed) for draw in draws]
        answers = sample(self._workers, requests, version)
        ended = time.monotonic()
        draws, rollouts = _answered(draws, answers)
        items = [
            {
                "image": opened[draw.image][0],
                "prompt": draw.prompt,
                "response": None,
                "response_token_ids": list(rollout.token_ids),
            }
            for draw, rollout in zip(draws, rollouts, strict=True)
        ]
        return Sampled(
            draws=draws,
            images=tuple(opened[draw.image][1] for draw in draws),
            rollouts=rollouts,
            verdicts=self._asking.submit(self._score, items),
            unreadable=len(wanted) - len(draws),
            version=version,
            began=began,
            ended=ended,
            sync_seconds=began - sync_began if sync else 0.0,
        )

    def _score(self, items: list[dict[str, Any]]) -> tuple[list[TypeVerdicts], float]:
        began = time.monotonic()
        return self._rewarder.score(items), time.monotonic() - began


def _answered(
    asked: Sequence[Draw], answers: "Sequence[Rollout | RefusedRollout]"
) -> tuple[tuple[Draw, ...], tuple[Rollout, ...]]:
    """Leave out what the engine did not take; it is named in the log.

    Raises:
        UserError: there is nothing else.
    """
    draws, rollouts = [], []
    for draw, answer in zip(asked, answers, strict=True):
        if isinstance(answer, RefusedRollout):
            logger.warning("left out %s: %s", draw.image, answer.reason)
            refused = answer
        else:
            draws.append(draw)
            rollouts.append(answer)
    if not rollouts:
        raise UserError(f"The rollout engine takes none of the prompts of a PPO step: {refused.reason}.")
    return tuple(draws), tuple(rollouts)


def _readable(wanted: Sequence[Draw]) -> tuple[tuple[Draw, ...], dict[str, tuple[bytes, Image]]]:
    """The draws whose images can be read, and file and picture of each image.

    Raises:
        UserError: there are none.
    """
    opened = _open_images(wanted)
    draws = tuple(draw for draw in wanted if draw.image in opened)
    if not draws:
        step = int(wanted[0].sample_id.split("-")[0]) + 1
        raise UserError(f"None of the images of PPO step {step} can be read, {wanted[0].image} for one.")
    return draws, opened


def _open_images(draws: Sequence[Draw]) -> dict[str, tuple[bytes, Image]]:
    """Load the readable images, file and picture, by path; the others are named in the log."""
    opened: dict[str, tuple[bytes, Image]] = {}
    for path in {draw.image: None for draw in draws}:
        try:
            data = storage.read_bytes(path)
            opened[path] = data, decode_image(data)
        except (OSError, ValueError) as error:
            logger.warning("left out %s: %s", path, error)
    return opened
