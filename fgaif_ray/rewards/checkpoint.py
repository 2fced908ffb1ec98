"""Checkpoint of reward training: its state after the last complete epoch, from which an interrupted training goes on.

The tensors of an epoch have a folder of their own; a small JSON file that is replaced in one piece says which folder
counts, so a process that dies while writing leaves the previous epoch.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from fgaif_ray import storage
from fgaif_ray.rewards.files import save_tensors

TENSORS_FILE: Final = "state.safetensors"


@dataclass
class TrainingState:
    """Everything that changes while a task is trained; batches and learning rates follow from the epoch."""

    epoch: int = 0
    """Number of finished epochs."""
    best_epoch: int = 0
    best_loss: float | None = None
    """Held-out loss of the best epoch, the mean over heads; None before the first."""
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)
    best_parameters: list[Tensor] = field(default_factory=list)
    best_probabilities: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Head -> ``[verdicts, classes]`` on the held-out images, with the best epoch's weights."""


class TrainingCheckpoint:
    """The checkpoint of one task, in a folder or URI that may hold other files."""

    def __init__(self, folder: str, name: str) -> None:
        self._folder, self._name = folder, name
        self._pointer = storage.join(folder, f"{name}.checkpoint.json")

    def save(self, state: TrainingState, parameters: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
        """Replace the checkpoint."""
        tensors = {f"best_probabilities.{name}": torch.from_numpy(v) for name, v in state.best_probabilities.items()}
        for index, (parameter, best) in enumerate(zip(parameters, state.best_parameters, strict=True)):
            tensors |= {f"parameters.{index}": parameter, f"best_parameters.{index}": best}
            tensors |= {f"optimiser.{index}.{key}": value for key, value in optimiser.state[parameter].items()}
        before = storage.read_json(self._pointer)["folder"] if storage.exists(self._pointer) else None
        name = f"{self._name}.checkpoint-{state.epoch}"
        with tempfile.TemporaryDirectory() as temporary:
            save_tensors(tensors, Path(temporary) / TENSORS_FILE, {"format": "pt"})
            storage.upload_folder(temporary, storage.join(self._folder, name))
        kept = {key: getattr(state, key) for key in ("epoch", "best_epoch", "best_loss", "seconds", "curve")}
        storage.write_json(self._pointer, {"folder": name, **kept})
        if before not in (None, name):
            storage.remove_folder(storage.join(self._folder, before))

    def load(self, parameters: Sequence[nn.Parameter], optimiser: torch.optim.Optimizer) -> TrainingState:
        """Restore parameters and optimiser; returns the state, a fresh one if nothing was saved."""
        if not storage.exists(self._pointer):
            return TrainingState()
        kept = storage.read_json(self._pointer)
        local = storage.local_copy(storage.join(self._folder, kept.pop("folder")))
        tensors = load_file(Path(local) / TENSORS_FILE)
        state = TrainingState(**kept)
        moments: dict[int, dict[str, Tensor]] = {index: {} for index in range(len(parameters))}
        for key, value in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "optimiser":
                place, _, name = rest.partition(".")
                moments[int(place)][name] = value
            elif kind == "best_probabilities":
                state.best_probabilities[rest] = value.numpy()
        with torch.no_grad():
            for index, parameter in enumerate(parameters):
                parameter.copy_(tensors[f"parameters.{index}"])
                state.best_parameters.append(tensors[f"best_parameters.{index}"].to(parameter.device))
        optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
        return state

    def remove(self) -> None:
        """Remove the checkpoint, if there is one, and the remains of unfinished ones."""
        if not storage.exists(self._pointer):
            return
        epochs = int(storage.read_json(self._pointer)["epoch"])
        storage.remove_file(self._pointer)
        for epoch in range(1, epochs + 2):
            storage.remove_folder(storage.join(self._folder, f"{self._name}.checkpoint-{epoch}"))
