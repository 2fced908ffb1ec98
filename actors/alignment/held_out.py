"""Evaluation while training: rollout workers answer held-out images greedily, and the reward service judges them."""

from collections.abc import Mapping, Sequence

from actors.alignment.experience import ExperienceSource
from actors.alignment.rollout import PolicyVersion
from fgaif_ray.evaluation.hallucination import Description
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rl.held_out import held_out_metrics
from fgaif_ray.rl.plan import Draw
from fgaif_ray.shapes.scenes import Scene
from fgaif_ray.vlm.front_end import FrontEnd
from fgaif_ray.vlm.group import WeightedMean


class HeldOut:
    """The images of one learner process that nothing is learnt from, with their prompts."""

    def __init__(
        self,
        source: ExperienceSource,
        draws: Sequence[Draw],
        truth: Mapping[str, Scene] | None,
        options: RewardOptions,
        front_end: FrontEnd,
    ) -> None:
        """Prepare without asking.

        Args:
            source: has the rollout workers and the reward service.
            draws: at least one; of its seed nothing depends.
            truth: the scene behind each image, or None.
            options: of the rewards, the same in all steps.
            front_end: decodes responses.
        """
        self._source, self._draws, self._truth = source, tuple(draws), truth
        self._options, self._front_end = options, front_end

    def measure(self, version: PolicyVersion) -> dict[str, WeightedMean]:
        """Measure a policy on this process's images (see ``held_out_metrics``).

        Raises:
            UserError: none of the images can be read.
        """
        sampled = self._source.start(self._draws, version, greedy=True).result()
        verdicts, _ = sampled.verdicts.result()
        described: list[Description] = []
        if self._truth is not None:
            described = [
                Description(
                    draw.images[0],
                    self._truth[draw.images[0]],
                    self._front_end.decode(one.token_ids),
                    one.finish_reason == "stop",
                )
                for draw, one in zip(sampled.draws, sampled.rollouts, strict=True)
            ]
        return held_out_metrics(sampled.trajectories(verdicts, self._options), self._options.types, described)
