"""What the driver hands to Ray Train: the settings of the learner workers, and the functions that they run.

Ray Train's controller imports this file as well and computes nothing: transformers and peft wait until a worker runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.actor import ActorHandle

from fgaif_ray.config import Config
from fgaif_ray.rl.plan import Draw
from fgaif_ray.shapes.scenes import Scene


@dataclass(frozen=True, slots=True)
class LearnerTask:
    """The driver's settings for the learner workers."""

    config: Config
    images: tuple[tuple[str, ...], ...]
    folder: str
    """The stage's partial folder, for adapters and logs."""
    critic_from: str | None
    reward_app: str
    rollout_workers: tuple[ActorHandle[Any], ...]
    own_prompts: Mapping[tuple[str, ...], Sequence[str]] | None = None
    """Prompts of each image, where the source has them."""
    evaluation: tuple[Draw, ...] = ()
    """Images and prompts to evaluate on while training; none where ``align.evaluate_every`` asks for none."""
    truth: Mapping[str, Scene] | None = None
    """The scenes behind their images, where they are known."""


@dataclass(frozen=True, slots=True)
class PreferenceTask:
    """The driver's settings for the learner workers."""

    config: Config
    folder: str
    """The stage's partial folder, for checkpoints and logs."""


def learn_from_rewards(settings: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's loop function for a ``task`` of ``LearnerTask``; see `actors.alignment.learner.train`."""
    from actors.alignment.learner import train

    return train(settings["task"])


def learn_from_preferences(settings: dict[str, Any]) -> dict[str, Any]:
    """The same for a ``task`` of ``PreferenceTask``; see `actors.alignment.preference_learner.train`."""
    from actors.alignment.preference_learner import train

    return train(settings["task"])
