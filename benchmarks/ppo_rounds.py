"""What the parts of `benchmarks.ppo` share: questions about scenes, a policy with an adapter, and two sides that take
turns.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fgaif_ray.config import Config
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import draw_scene

if TYPE_CHECKING:
    from fgaif_ray.rl.policy import PolicyModel

Side = Callable[[int], int]
"""Does the work of a round, and returns how much that was (tokens, responses)."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a response is sampled to."""

    prompt: str
    image: str
    """Path of an image file, as the learner hands it to the rollout workers."""
    seed: int


@dataclass(frozen=True, slots=True)
class Rounds:
    """Work per second of two sides in each round; the warm-up is not among them."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> float:
        """Ours over theirs: the median of the rounds' ratios."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True))

    def describe(self, part: str, other: str, unit: str) -> str:
        """One line for people."""
        ratios = [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]
        return (
            f"{part}: {statistics.median(self.ours):,.1f} {unit}/s, {other} {statistics.median(self.theirs):,.1f}; "
            f"ratio {self.ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} rounds)"
        )


def take_turns(ours: Side, theirs: Side, rounds: int) -> Rounds:
    """Rounds of both sides, after one that is not counted; who begins changes from round to round.

    Args:
        ours: called with the number of the round, from 0.
        theirs: likewise.
        rounds: that are counted.
    """
    rates: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for side in (0, 1) if number % 2 else (1, 0):
            started = time.perf_counter()
            work = (ours, theirs)[side](number)
            if number:
                rates[side].append(work / (time.perf_counter() - started))
    return Rounds(*rates)


def draw_questions(prompts: Sequence[str], first: int, count: int, folder: str) -> list[Question]:
    """Questions about as many different scenes, the ``first``-th and those after it, whose images go into a folder."""
    questions = []
    for index in range(first, first + count):
        path = f"{folder}/{index}.png"
        render(draw_scene("train", index)).save(path)
        questions.append(Question(prompts[index % len(prompts)], path, index))
    return questions


def load_policy(config: Config, device: str = "cpu") -> "PolicyModel":
    """Policy and critic as the learner has them, with a policy adapter that does a little."""
    import torch

    from fgaif_ray.rl.policy import PolicyModel
    from fgaif_ray.vlm.backbone import load_backbone

    align = config.align
    backbone = load_backbone(config.policy.model, config.policy.dtype)
    backbone.move_to(device)
    model = PolicyModel(
        backbone,
        align.lora,
        temperature=align.rollout.temperature,
        seed=config.run.seed,
        activation_checkpointing=align.activation_checkpointing,
    )
    generator = torch.Generator().manual_seed(config.run.seed)
    for name, parameter in model.policy_parameters().items():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.002)
    return model.to(device)
