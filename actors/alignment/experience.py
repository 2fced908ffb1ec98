"""The source of a learner worker's responses: images and prompts are drawn, sampled by the rollout workers, and sent to
the reward service at once. All of it runs in the background, so that the learner may do something else.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
from PIL.Image import Image
from ray.actor import ActorHandle

from actors.alignment.rewarder import Rewarder, TypeVerdicts
from actors.alignment.rollout import PolicyVersion, RefusedRollout, Rollout, RolloutRequest, sample
from fgaif_ray import storage
from fgaif_ray.blind import Images, ShownImages
from fgaif_ray.errors import UserError
from fgaif_ray.images import open_images
from fgaif_ray.pixel_budget import PixelBudget
from fgaif_ray.records import image_fields
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rl.plan import Draw
from fgaif_ray.rl.trajectories import Trajectory, reward_trajectory
from fgaif_ray.vlm.front_end import FrontEnd

logger = logging.getLogger(__name__)

PromptIds = dict[tuple[str, int], tuple[int, ...]]
"""Token ids by prompt and number of images."""
OpenedImages = Mapping[str, Image | UserError]
"""By path, or why it cannot be opened."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One worker's responses of a step; their rewards may still be on the way."""

    draws: tuple[Draw, ...]
    images: tuple[tuple[Image, ...], ...]
    """``[responses]`` images of each; responses to the same image share the object."""
    rollouts: tuple[Rollout, ...]
    verdicts: "Future[tuple[list[TypeVerdicts], float]]"
    """``[responses]``, and the seconds that the reward service took."""
    unreadable: int
    """Draws left out because an image cannot be read, or they do not fit the engine."""
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
                **image_fields(draw.images),
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
                trajectory = reward_trajectory(trajectory, verdict.probabilities, options, verdict.facts)
            trajectories.append(trajectory)
        return trajectories


class ExperienceSource:
    """Sampling and scoring in the background, one batch after the other."""

    def __init__(
        self,
        front_end: FrontEnd,
        workers: Sequence[ActorHandle[Any]],
        rewarder: Rewarder,
        budget: PixelBudget,
        seen: ShownImages = tuple,
        judged: ShownImages = tuple,
    ) -> None:
        """Start its threads: for sampling, for the learner's own images meanwhile, and for rewards.

        Args:
            front_end: tokenizes prompts, in the caller's thread.
            workers: rollout workers.
            rewarder: asks the reward service.
            budget: of pixels of an image.
            seen: gives the paths of what the policy is shown in place of images (see ``fgaif_ray.blind``).
            judged: the same for the reward models.
        """
        self._seen, self._judged = seen, judged
        self._front_end, self._workers, self._rewarder, self._budget = front_end, workers, rewarder, budget
        self._sampling = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollouts")
        self._opening = ThreadPoolExecutor(max_workers=1, thread_name_prefix="opening")
        self._asking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rewards")

    def start(
        self, draws: Sequence[Draw], version: PolicyVersion, *, sync: bool = False, greedy: bool = False
    ) -> "Future[Sampled]":
        """Begin a batch.

        Args:
            draws: at least one.
            version: the policy that samples.
            sync: have every rollout worker load it first, apart from the sampling; otherwise they do so by themselves.
            greedy: take the likeliest tokens, whatever the seeds.

        Returns:
            Its result raises UserError where none of the images can be read.
        """
        # A tokenizer is not safe in two threads at once, and the learner uses it for its own passes.
        return self._sampling.submit(self._sample, tuple(draws), self._prompt_ids(draws), version, sync, greedy)

    def probe(
        self, draws: Sequence[Draw], version: PolicyVersion
    ) -> tuple[tuple[Draw, ...], tuple[tuple[Image, ...], ...], tuple[Rollout, ...]]:
        """Sample a few responses at once, without rewards, from every rollout worker in turn.

        Returns:
            What was drawn of it, the images of each, and the responses, ``[responses]`` each.

        Raises:
            UserError: none of the images can be read, or none suits the engine.
        """
        return self._ask(draws, self._prompt_ids(draws), version)

    def close(self) -> None:
        """Release the threads without waiting for what is under way."""
        for pool in (self._sampling, self._opening, self._asking):
            pool.shutdown(wait=False, cancel_futures=True)

    def _prompt_ids(self, draws: Sequence[Draw]) -> PromptIds:
        asked = {(draw.prompt, len(draw.images)) for draw in draws}
        return {one: self._front_end.prompt_ids(*one) for one in asked}

    def _sample(
        self, wanted: tuple[Draw, ...], prompt_ids: PromptIds, version: PolicyVersion, sync: bool, greedy: bool
    ) -> Sampled:
        sync_began = time.monotonic()
        if sync:
            ray.get([worker.serve.remote(version) for worker in self._workers])
        began = time.monotonic()
        draws, images, rollouts = self._ask(wanted, prompt_ids, version, greedy)
        ended = time.monotonic()
        items = [
            {
                "images": tuple(map(storage.absolute, self._judged(draw.images))),
                "prompt": draw.prompt,
                "response": None,
                "response_token_ids": list(rollout.token_ids),
            }
            for draw, rollout in zip(draws, rollouts, strict=True)
        ]
        return Sampled(
            draws=draws,
            images=images,
            rollouts=rollouts,
            verdicts=self._asking.submit(self._score, items),
            unreadable=len(wanted) - len(draws),
            version=version,
            began=began,
            ended=ended,
            sync_seconds=began - sync_began if sync else 0.0,
        )

    def _ask(
        self, wanted: Sequence[Draw], prompt_ids: PromptIds, version: PolicyVersion, greedy: bool = False
    ) -> tuple[tuple[Draw, ...], tuple[tuple[Image, ...], ...], tuple[Rollout, ...]]:
        """Sample responses, and open the images for the learner's own passes while the engines work.

        Raises:
            UserError: none of the images can be read, or none suits the engine.
        """
        shown = [self._seen(draw.images) for draw in wanted]
        requests = [
            RolloutRequest(
                prompt_ids[draw.prompt, len(draw.images)], tuple(map(storage.absolute, images)), draw.seed, greedy
            )
            for draw, images in zip(wanted, shown, strict=True)
        ]
        opening = self._opening.submit(open_images, [path for images in shown for path in images], self._budget)
        answers = sample(self._workers, requests, version)
        return _usable(wanted, shown, opening.result(), answers)

    def _score(self, items: list[dict[str, Any]]) -> tuple[list[TypeVerdicts], float]:
        began = time.monotonic()
        return self._rewarder.score(items), time.monotonic() - began


def _pictures(images: Images, opened: OpenedImages) -> tuple[Image, ...] | None:
    """The images of a draw; None, and a line in the log, where one of them cannot be opened."""
    pictures: list[Image] = []
    for path in images:
        image = opened[path]
        if isinstance(image, UserError):
            logger.warning("left out %s: %s", path, image)
            return None
        pictures.append(image)
    return tuple(pictures)


def _usable(
    wanted: Sequence[Draw],
    shown: Sequence[Images],
    opened: OpenedImages,
    answers: Sequence[Rollout | RefusedRollout],
) -> tuple[tuple[Draw, ...], tuple[tuple[Image, ...], ...], tuple[Rollout, ...]]:
    """Leave out, and name in the log, what cannot be read here or was not answered.

    Returns:
        ``[responses]`` draws, the images of each, and the responses.

    Raises:
        UserError: there is nothing else.
    """
    readable = [
        (draw, pictures, answer)
        for draw, images, answer in zip(wanted, shown, answers, strict=True)
        if (pictures := _pictures(images, opened)) is not None
    ]
    if not readable:
        batch = wanted[0].sample_id.split("-")[0]
        name = f"step {int(batch) + 1}" if batch.isdigit() else "the evaluation while training"
        raise UserError(f"None of the images of {name} can be read, {wanted[0].images[0]} for one.")
    usable = []
    for draw, pictures, answer in readable:
        if isinstance(answer, RefusedRollout):
            logger.warning("left out %s: %s", ", ".join(draw.images), answer.reason)
            refused = answer
        else:
            usable.append((draw, pictures, answer))
    if not usable:
        raise UserError(f"The rollout engine takes none of the prompts of a step: {refused.reason}.")
    draws, images, rollouts = zip(*usable, strict=True)
    return draws, images, rollouts
