"""What runs have in common before anything is there: the fingerprints of ``stages`` over stand-ins for images."""

from collections.abc import Sequence
from typing import Any, Final

from fgaif_ray.config import Config
from fgaif_ray.storage.stage_names import EVALUATION, FEEDBACK, POLICY, RESPONSES, REWARDS
from fgaif_ray.storage.stages import (
    LabelSources,
    answers_before,
    evaluation,
    feedback,
    policy,
    responses,
    rewards,
    verdicts,
)

_THRESHOLDS: Final = {"threshold": True, "calibration": True}
VERDICTS: Final = "verdicts"
"""What models say of facts, of which labels are made."""
BEFORE: Final = "before"
"""The answers of the policy before alignment."""
PLANNED: Final = (RESPONSES, VERDICTS, FEEDBACK, REWARDS, POLICY, BEFORE, EVALUATION)
"""What runs may have in common, in the order in which a run has it."""


def planned_keys(config: Config) -> dict[str, str]:
    """A key for each of PLANNED before anything is there; equal where runs have the stage in common."""
    images = _PlannedImages(config)
    label = config.label
    settings = label.model_dump(
        mode="json", include={"human": True, "noise": True, "verifier": _THRESHOLDS, "second_verifier": _THRESHOLDS}
    )
    sources = LabelSources((settings,), None, None)
    keys = {RESPONSES: responses(config, images).fingerprint}
    keys[VERDICTS] = verdicts(config, keys[RESPONSES])
    keys[FEEDBACK] = feedback(config, sources, keys[RESPONSES]).fingerprint
    keys[REWARDS] = rewards(config, keys[FEEDBACK]).fingerprint
    scaled = config.rewards.temperature_scaling
    keys[POLICY] = policy(config, images, [keys[REWARDS], str(scaled)], keys[FEEDBACK]).fingerprint
    keys[BEFORE] = answers_before(config, images)
    keys[EVALUATION] = evaluation(config, images, keys[POLICY]).fingerprint
    return keys


class _PlannedImages:
    """Stands for images that are not drawn or read yet: the settings that decide which they are."""

    def __init__(self, config: Config) -> None:
        data = config.data
        trained = data.model_dump(mode="json", exclude={"prompts": True, "blind": True, "shapes": {"evaluate_split"}})
        self.sample = self.align = [trained, config.run.seed]
        evaluated = data.model_dump(mode="json", exclude={"prompts": True, "blind": True, "shapes": {"augmented"}})
        self.evaluate = [evaluated, config.run.seed]
        self.provided, self.provided_key = 0, ""

    def names_of(self, part: Any) -> Any:
        return part

    def prompts_of(self, part: Any, shared: Sequence[str]) -> Any:  # noqa: ARG002
        return shared
