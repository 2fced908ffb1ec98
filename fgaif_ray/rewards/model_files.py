"""Reward models to and from their folders (``rewards.files`` describes these)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from peft import LoraConfig
from safetensors.torch import load_file

from fgaif_ray import storage
from fgaif_ray.errors import UserError
from fgaif_ray.rewards.domain import ImageDomain
from fgaif_ray.rewards.fact_counts import TARGETS
from fgaif_ray.rewards.files import (
    ADAPTER_FILES,
    CLASSES,
    HEAD_FILE,
    read_domain_card,
    read_folder,
    save_tensors,
)
from fgaif_ray.rewards.label_noise import LabelNoise
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.vlm.backbone import Backbone

NOISE: Final = "label_noise"
"""A tensor's name in the file of a head."""
COUNTS: Final = "facts."
"""Begins the names of a readout's tensors in the file of a head."""


def save_reward_model(model: RewardModel, fact_type: str, folder: Path, head: str | None = None) -> None:
    """Write the PEFT adapter and ``head.safetensors`` of one type to a local folder.

    Args:
        model: that has the head.
        fact_type: fact type of the saved model.
        folder: is made if it does not exist.
        head: the head to save, if its name is not that of the type.
    """
    head = head or fact_type
    adapter = model.adapter_of(head)
    folder.mkdir(parents=True, exist_ok=True)
    replace(model.adapters.config(adapter), inference_mode=True).save_pretrained(str(folder))
    save_tensors(model.adapters.weights(adapter), folder / ADAPTER_FILES[1], {"format": "pt"})
    metadata = {"format": "pt", "fact_type": fact_type, "classes": CLASSES}
    tensors = model.heads[head].state_dict() | {"temperature": torch.tensor(model.temperatures[head])}
    tensors["bias"] = tensors["bias"] - model.loss_shift(head)
    if (noise := model.label_noise.get(head)) is not None:
        tensors[NOISE] = torch.tensor([noise.of_consistent, noise.of_hallucinated])
    if head in model.fact_counts:
        tensors |= {f"{COUNTS}{name}": value for name, value in model.fact_counts[head].state_dict().items()}
        metadata["fact_counts"] = ",".join(TARGETS)
    save_tensors(tensors, folder / HEAD_FILE, metadata | {"granularity": model.granularity(head)})
    if head in model.domains:
        model.domains[head].save(folder)


def load_reward_model(
    backbone: Backbone, folders: Mapping[str, str], *, temperature_scaling: bool = False
) -> RewardModel:
    """Load reward models, by fact type, over one backbone. Folders with the same adapter share it.

    Args:
        backbone: gets the adapters.
        folders: fact type -> folder or URI that ``save_reward_model`` has filled.
        temperature_scaling: divide each type's logits by the temperature that was fitted on held-out images.

    Raises:
        UserError: files are missing, or one was trained for another fact type or on another backbone.
    """
    model = RewardModel(backbone, temperature_scaling=temperature_scaling)
    loaded: dict[str, str] = {}  # digest of an adapter's files -> its name in the model
    for fact_type, folder in folders.items():
        _load(model, fact_type, folder, loaded)
    return model


def _load(model: RewardModel, fact_type: str, folder: str, loaded: dict[str, str]) -> None:
    local = Path(storage.local_copy(folder))
    if not any((local / name).is_file() for name in ADAPTER_FILES):
        raise UserError(f"{folder} holds no reward model: train it with jobs.train_rewards.")
    files = read_folder(str(local))
    trained_for = files.metadata.get("fact_type")
    if trained_for != fact_type:
        raise UserError(
            f"{folder} holds the reward model of {trained_for!r}, not of {fact_type!r}: give the right one."
        )
    if files.adapter not in loaded:
        _load_adapter(model, fact_type, local, folder)
        loaded[files.adapter] = fact_type
    head = load_file(local / HEAD_FILE)
    temperature = head.pop("temperature", torch.ones(()))
    noise = head.pop(NOISE, None)
    counts = {name.removeprefix(COUNTS): head.pop(name) for name in list(head) if name.startswith(COUNTS)}
    model.add_head(fact_type, loaded[files.adapter], files.granularity)
    wanted = model.heads[fact_type].state_dict()
    if {name: value.shape for name, value in head.items()} != {n: value.shape for n, value in wanted.items()}:
        raise _misfit(model, folder, local)
    model.heads[fact_type].load_state_dict(head)
    model.temperatures[fact_type] = float(temperature)
    if noise is not None:
        model.label_noise[fact_type] = LabelNoise(*noise.tolist())
    if counts:
        model.set_fact_counts(fact_type, counts)
    if (card := read_domain_card(str(local))) is not None:
        domain = ImageDomain.load(local, card)
        if len(domain.mean) != model.backbone.hidden_size:
            raise _misfit(model, folder, local)
        alike = (known for known in model.domains.values() if known.equals(domain))
        model.domains[fact_type] = next(alike, domain)


def _load_adapter(model: RewardModel, name: str, local: Path, folder: str) -> None:
    weights = load_file(local / ADAPTER_FILES[1])
    model.adapters.add(name, LoraConfig.from_pretrained(str(local)))
    expected = {key: value.shape for key, value in model.adapters.weights(name).items()}
    if expected != {key: value.shape for key, value in weights.items()}:
        raise _misfit(model, folder, local)
    model.adapters.set_weights(name, weights)


def _misfit(model: RewardModel, folder: str, local: Path) -> UserError:
    trained_on = LoraConfig.from_pretrained(str(local)).base_model_name_or_path
    return UserError(
        f"{folder} does not fit {model.backbone.path}: score with the backbone it was trained on, {trained_on}."
    )
