"""The folder of a reward model: an adapter in PEFT layout, a head, and a description read without loading weights.

``head.safetensors`` holds ``weight [3, hidden]``, ``bias [3]`` and ``temperature []``; its metadata names the fact
type, the classes and the granularity. Folders with the same adapter files share the adapter in memory and its forward
pass; the head is a folder's own.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from safetensors.torch import save_file

from fgaif_ray import storage
from fgaif_ray.rewards.kinds import Granularity, RewardKind

ADAPTER_FILES: Final = ("adapter_config.json", "adapter_model.safetensors", "head.safetensors")
HEAD_FILE: Final = ADAPTER_FILES[-1]
METRICS_FILE: Final = "metrics.json"
"""The file that is written last: a folder that has it is complete."""
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

    @property
    def granularity(self) -> Granularity:
        """Unit of a verdict; segments if the head does not say."""
        return cast("Granularity", self.metadata.get("granularity", "segment"))


def read_folder(folder: str) -> RewardModelFiles:
    """Describe the reward model in a local folder or URI.

    Raises:
        OSError: a file is missing.
    """
    digests = [_digest(storage.join(folder, name)) for name in ADAPTER_FILES]
    with storage.open_binary(storage.join(folder, HEAD_FILE)) as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(size))
    adapter, version = (hashlib.sha256(b"".join(part)).hexdigest()[:12] for part in (digests[:-1], digests))
    return RewardModelFiles(adapter, version, header.get("__metadata__", {}))


def kind_of(files: Mapping[str, RewardModelFiles]) -> RewardKind:
    """Return the kind of the reward models in a run's folders, whatever the configuration says."""
    if any(found.granularity == "response" for found in files.values()):
        return "coarse"
    adapters = {found.adapter for found in files.values()}
    return "multitask" if len(adapters) < len(files) else "separate"


def save_tensors(tensors: Mapping[str, Any], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file that others may read."""
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(contiguous, path, metadata=dict(metadata))
    path.chmod(0o644)  # safetensors makes files that only the owner may read


def _digest(uri: str) -> bytes:
    digest = hashlib.sha256()
    with storage.open_binary(uri) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()
