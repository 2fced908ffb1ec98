"""The names of the stages, the command that makes each, and what it reads.

    images/ -> responses/ -> feedback/ -> rewards/<type>/ -> policy/ -> evaluation/ -> report/
                             + feedback_rejected/                       + benchmarks/<name>/
                             -> audit/, calibration/

A stage's name is its folder below ``run.dir``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.storage.files import join
from fgaif_ray.storage.stage import read_manifest

IMAGES: Final = "images"
RESPONSES: Final = "responses"
FEEDBACK: Final = "feedback"
FEEDBACK_REJECTED: Final = "feedback_rejected"
AUDIT: Final = "audit"
CALIBRATION: Final = "calibration"
SECOND_CALIBRATION: Final = "calibration_second"
REWARDS: Final = "rewards"
POLICY: Final = "policy"
EVALUATION: Final = "evaluation"
BENCHMARKS: Final = "benchmarks"
REPORT: Final = "report"


@dataclass(frozen=True, slots=True)
class StageInfo:
    """Definition of a stage: its command and its inputs."""

    command: str
    """``python -m jobs.<command>``."""
    inputs: tuple[str, ...]
    """Stages that it reads."""


STAGES: Final[Mapping[str, StageInfo]] = {
    IMAGES: StageInfo("sample", ()),
    RESPONSES: StageInfo("sample", (IMAGES,)),
    FEEDBACK: StageInfo("label", (RESPONSES,)),
    FEEDBACK_REJECTED: StageInfo("label", (RESPONSES,)),
    AUDIT: StageInfo("audit", (FEEDBACK,)),
    CALIBRATION: StageInfo("calibrate", ()),
    SECOND_CALIBRATION: StageInfo("calibrate", ()),
    REWARDS: StageInfo("train_rewards", (FEEDBACK,)),
    POLICY: StageInfo("align", (IMAGES, REWARDS)),
    EVALUATION: StageInfo("evaluate", (IMAGES, POLICY)),
    BENCHMARKS: StageInfo("benchmark", (POLICY,)),
    REPORT: StageInfo("report", (FEEDBACK, REWARDS, POLICY, EVALUATION)),
}


def require(run: str, name: str) -> dict[str, Any]:
    """The manifest of a stage that another one needs.

    Raises:
        UserError: it has not been published; the message names the command that makes it.
    """
    manifest = read_manifest(run, name)
    if manifest is None:
        command = f"python -m jobs.{STAGES[name].command}"
        raise UserError(f"{join(run, name)} is not there: run `{command}` with this configuration first.")
    return manifest


def reward_folders(config: Config) -> dict[str, str]:
    """Where a run has its reward models, by fact type."""
    return {fact_type: join(config.run.dir, REWARDS, fact_type) for fact_type in config.run.type_names}


def fingerprint_of(config: Config, name: str) -> str:
    """The fingerprint of a published stage; raises UserError as ``require`` does."""
    found: str = require(config.run.dir, name)["fingerprint"]
    return found
