"""The state of an alignment as a folder: safetensors for tensors, JSON for the rest, and the policy as a PEFT adapter.

Random numbers are functions of the seed and the step (see ``plan``), so the step restores the data position and
every generator.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

from safetensors.torch import load_file, save_file
from torch import Tensor

from fgaif_ray.rewards.scale import RunningScale
from fgaif_ray.rl.guards import TrainingGuards
from fgaif_ray.rl.held_out import BestPolicy
from fgaif_ray.rl.kept_policy import KeptPolicy
from fgaif_ray.rl.kl import KLController
from fgaif_ray.rl.policy import PolicyModel

STATE_FILE: Final = "state.json"
WEIGHTS_FILE: Final = "weights.safetensors"
OPTIMIZER_FILE: Final = "optimizer.safetensors"
PREVIOUS_POLICY_FILE: Final = "previous_policy.safetensors"
BEST_POLICY_FILE: Final = "best_policy.safetensors"
POLICY_FOLDER: Final = "policy"


class Updater(Protocol):
    """What has an optimiser."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


UpdaterType = TypeVar("UpdaterType", bound=Updater)


@dataclass(frozen=True, slots=True)
class LearnerState(Generic[UpdaterType]):
    """Everything that changes while a policy is aligned."""

    model: PolicyModel
    updater: UpdaterType
    kl_controller: KLController
    guards: TrainingGuards
    previous: KeptPolicy | None = None
    """The policy that samples the batch of ``next_step``."""
    reward_scale: RunningScale | None = None
    best: BestPolicy | None = None

    def save(self, folder: str | Path, next_step: int) -> None:
        """Write the state to a local folder; ``next_step`` is the step that a resumed run begins with."""
        target = Path(folder)
        self.model.save_policy(target / POLICY_FOLDER)
        save_file(self.model.trained_state(), target / WEIGHTS_FILE)
        save_file(self.updater.state_dict(), target / OPTIMIZER_FILE)
        if self.previous is not None and self.previous.is_kept:
            save_file(self.previous.state_dict(), target / PREVIOUS_POLICY_FILE)
        if self.best is not None and self.best.kept.is_kept:
            save_file(self.best.kept.state_dict(), target / BEST_POLICY_FILE)
        state = {
            "next_step": next_step,
            "kl_controller": self.kl_controller.state_dict(),
            "guards": self.guards.state_dict(),
        }
        if self.reward_scale is not None:
            state["reward_scale"] = self.reward_scale.state_dict()
        if self.best is not None:
            state["best"] = self.best.state_dict()
        (target / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: str | Path) -> int:
        """Restore what ``save`` wrote; returns the step to begin with."""
        source = Path(folder)
        state: dict[str, Any] = json.loads((source / STATE_FILE).read_text(encoding="utf-8"))
        self.model.load_trained_state(load_file(source / WEIGHTS_FILE))
        self.updater.load_state_dict(load_file(source / OPTIMIZER_FILE))
        if self.previous is not None:
            self.previous.load_state_dict(load_file(source / PREVIOUS_POLICY_FILE))
        self.kl_controller.load_state_dict(state["kl_controller"])
        self.guards.load_state_dict(state["guards"])
        if self.reward_scale is not None:
            self.reward_scale.load_state_dict(state["reward_scale"])
        if self.best is not None:
            self.best.load_state_dict(state["best"])
            if (source / BEST_POLICY_FILE).exists():
                self.best.kept.load_state_dict(load_file(source / BEST_POLICY_FILE))
        return int(state["next_step"])
