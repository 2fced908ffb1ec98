"""The folder of a reward model: an adapter in PEFT layout, a head, and a description read without loading weights.

``head.safetensors`` holds ``weight [3, hidden]``, ``bias [3]`` without the class weights of the loss,
``temperature []``, with ``rewards.label_noise: taken_out`` ``label_noise [2]`` (shares of wrong labels of consistent
and of hallucinated segments) and, with ``rewards.fact_counts``, ``facts.weight [2, hidden]`` and ``facts.bias [2]``;
its metadata names the fact type, the classes and the granularity. Folders with the same adapter files share the adapter
in memory and its forward pass; the head is a folder's own.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from pydantic import ValidationError

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import BrokenFileError, UserError
from fgaif_ray.fact_types import BUILT_IN
from fgaif_ray.records import CLASS_NAMES, fingerprint
from fgaif_ray.rewards.kinds import Granularity, RewardKind
from fgaif_ray.serving.wire import DomainCard, TrainedOn
from fgaif_ray.storage import stages
from fgaif_ray.vlm.checkpoint import check_adapter, check_safetensors

ADAPTER_FILES: Final = ("adapter_config.json", "adapter_model.safetensors", "head.safetensors")
HEAD_FILE: Final = ADAPTER_FILES[-1]
DOMAIN_FILE: Final = "domain.safetensors"
"""How far images are from those of training (``rewards.domain``); models of few images and of earlier releases have
none."""
CLASSES: Final = ",".join(CLASS_NAMES)
"""The classes of a head's rows, in its metadata."""
METRICS_FILE: Final = "metrics.json"
"""The file that is written last: a folder that has it is complete."""
DEFAULT_SETTINGS: Final[Mapping[str, Any]] = {
    "dtype": "auto",
    "quantisation": "none",
    "temperature_scaling": False,
    "chat_template_kwargs": {},
    "min_pixels": None,
    "max_pixels": None,
}
_CHUNK: Final = 1 << 24


@dataclass(frozen=True, slots=True)
class RewardModelFiles:
    """Description of a reward model, read from its folder."""

    adapter: str
    """Digest of the adapter; equal digests mean the same adapter."""
    version: str
    """Digest of all files."""
    metadata: Mapping[str, str]
    """Of the head."""

    def served_version(self, temperature_scaling: bool) -> str:
        """The version of what it says: another one where its temperature is applied."""
        scaled = fingerprint(self.version, "temperature scaling")[: len(self.version)]
        return scaled if temperature_scaling else self.version

    @property
    def counts_facts(self) -> bool:
        """Whether it estimates how many facts a segment states."""
        return "fact_counts" in self.metadata

    @property
    def granularity(self) -> Granularity:
        """Unit of a verdict; segments if the head does not say."""
        return cast("Granularity", self.metadata.get("granularity", "segment"))


def read_folder(folder: str) -> RewardModelFiles:
    """Describe the reward model in a local folder or URI.

    Raises:
        BrokenFileError: a file is missing or damaged.
    """
    check_adapter(folder)
    head = storage.join(folder, HEAD_FILE)
    header = check_safetensors(head, storage.repair_advice(head))
    metadata = header.get("__metadata__", {})
    if metadata.get("classes", CLASSES) != CLASSES:  # its numbers would fit, and mean something else
        raise BrokenFileError(head, f"its classes are {metadata['classes']!r}, not {CLASSES!r}", "train it again")
    digests = [_digest(storage.join(folder, name)) for name in ADAPTER_FILES]
    adapter, version = (hashlib.sha256(b"".join(part)).hexdigest()[:12] for part in (digests[:-1], digests))
    return RewardModelFiles(adapter, version, metadata)


def published_reward_folders(config: Config) -> dict[str, str]:
    """The reward models of the run, by fact type.

    Raises:
        UserError: one has not been trained.
    """
    folders = stages.reward_folders(config)
    for folder in folders.values():
        if not any(storage.exists(storage.join(folder, name)) for name in ADAPTER_FILES):
            message = (
                f"{folder} holds no reward model: run `python -m jobs.train_rewards` with this configuration first."
            )
            raise UserError(message)
    return folders


def published_versions(config: Config) -> list[str]:
    """The versions of the run's reward models, in the order of their fact types.

    Raises:
        UserError: one has not been trained.
    """
    scaled = config.rewards.temperature_scaling
    return [read_folder(folder).served_version(scaled) for folder in published_reward_folders(config).values()]


def find_reward_folders(path: str) -> dict[str, str]:
    """Find reward models, by fact type: those of a run, of its ``rewards/``, or the one in a folder itself.

    Args:
        path: folder or URI.

    Raises:
        UserError: there is none.
        BrokenFileError: a file is missing or damaged.
    """
    if storage.exists(storage.join(path, HEAD_FILE)):
        return {read_folder(path).metadata.get("fact_type", "reward"): path}
    for folder in (path, storage.join(path, stages.REWARDS)):
        inside = {name: storage.join(folder, name) for name in storage.list_folders(folder)}
        found = {name: one for name, one in inside.items() if storage.exists(storage.join(one, HEAD_FILE))}
        if found:
            return {name: found[name] for name in sorted(found, key=[*BUILT_IN, *found].index)}
    raise UserError(f"{path} holds no reward model: give the folder of a run, or its rewards/ (fgaif train-rewards).")


def read_domain_card(folder: str) -> DomainCard | None:
    """What a reward model's folder says of its domain, ``ImageDomain.card``; None where it has none.

    Raises:
        BrokenFileError: the file is damaged.
    """
    uri = storage.join(folder, DOMAIN_FILE)
    if not storage.exists(uri):
        return None
    metadata = check_safetensors(uri, storage.repair_advice(uri)).get("__metadata__", {})
    try:
        return DomainCard.model_validate_json(metadata.get("card", ""))
    except ValidationError as error:
        raise BrokenFileError(uri, "its header does not say what it was measured on", "train it again") from error


def read_trained_on(folder: str) -> TrainedOn | None:
    """What a reward model was trained on, as its metrics say; None where there are none.

    Those of earlier releases do not say the source.
    """
    uri = storage.join(folder, METRICS_FILE)
    metrics = storage.read_json(uri) if storage.exists(uri) else {}
    if "train" not in metrics:
        return None
    return TrainedOn.model_validate({**metrics["train"], "source": metrics.get("source")})


def base_model(folder: str) -> str:
    """The backbone that a reward model was trained on."""
    settings = storage.read_json(storage.join(folder, ADAPTER_FILES[0]))
    return str(settings.get("base_model_name_or_path", ""))


def read_settings(folder: str) -> dict[str, Any]:
    """How a reward model's backbone was loaded and its images were opened, as its metrics say.

    Models of earlier releases do not say it: their defaults are those of the configuration.
    """
    uri = storage.join(folder, METRICS_FILE)
    said = storage.read_json(uri).get("settings", {}) if storage.exists(uri) else {}
    return {**DEFAULT_SETTINGS, **{name: value for name, value in said.items() if name in DEFAULT_SETTINGS}}


def settings_of(config: Config) -> dict[str, Any]:
    """What ``read_settings`` finds again, of a run."""
    rewards, data = config.rewards, config.data
    return {
        "dtype": rewards.dtype,
        "quantisation": rewards.quantisation,
        "temperature_scaling": rewards.temperature_scaling,
        "chat_template_kwargs": dict(data.chat_template_kwargs),
        "min_pixels": data.min_pixels,
        "max_pixels": data.max_pixels,
    }


def kind_of(files: Mapping[str, RewardModelFiles]) -> RewardKind:
    """Return the kind of the reward models in a run's folders, whatever the configuration says."""
    if any(found.granularity == "response" for found in files.values()):
        return "coarse"
    adapters = {found.adapter for found in files.values()}
    return "multitask" if len(adapters) < len(files) else "separate"


def save_tensors(tensors: Mapping[str, Any], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file that others may read."""
    from safetensors.torch import save_file  # brings torch, which readers do without

    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(contiguous, path, metadata=dict(metadata))
    path.chmod(0o644)  # safetensors makes files that only the owner may read


def _digest(uri: str) -> bytes:
    digest = hashlib.sha256()
    with storage.open_binary(uri) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()
