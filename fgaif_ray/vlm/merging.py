"""Merging of a LoRA adapter into a checkpoint's weights, tensor by tensor.

It needs memory for one tensor at a time, or for one file of the checkpoint when it writes a merged copy.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fgaif_ray.vlm.checkpoint import CONFIG_FILE, check_adapter, check_checkpoint, check_safetensors, weight_files

# Files of a checkpoint beside its weights: configuration, tokenizer, processor, chat template.
_COMPANIONS: Final = {".json", ".jinja", ".model", ".tiktoken", ".txt"}
EMBEDDINGS: Final = "embed_tokens.weight"
"""Stands in every checkpoint beside the layers of its decoder, and of nothing else."""


def merged_weights(checkpoint: str, adapter: str) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight of a checkpoint: W + alpha / rank * B A where the adapter has an A and a B for it.

    Args:
        checkpoint: folder, or the name of a model that has been downloaded.
        adapter: local PEFT folder.

    Yields:
        The checkpoint's name and the tensor in the checkpoint's dtype; the sum is made in float32.

    Raises:
        ValueError: the adapter has tensors that fit no weight of the checkpoint.
    """
    files = weight_files(checkpoint, check_checkpoint(checkpoint))
    merger = _Merger(adapter, files)
    merger.check(checkpoint)
    for path in files:
        yield from merger.tensors(path)


def write_merged(checkpoint: str, adapter: str, folder: str | Path, dtype: torch.dtype | None = None) -> float:
    """Write the checkpoint with the adapter merged in: the same files and names, other weights.

    A small update is lost where weights have few digits: what is added to a bfloat16 weight counts from about 1/256 of
    it on.

    Args:
        checkpoint: folder, or the name of a model that has been downloaded.
        adapter: local PEFT folder.
        folder: is made; it may exist only if it is empty.
        dtype: of the weights that are written; None keeps each weight's own.

    Returns:
        How much of the update has survived the rounding, 0 to about 1: the part of it that the written weights have
        moved in its direction.

    Raises:
        ValueError: the folder is not empty, or the adapter has tensors that fit no weight of the checkpoint.
        UserError: the checkpoint or the adapter is not downloaded, not supported or broken.
    """
    target, source = Path(folder), check_checkpoint(checkpoint)
    files = weight_files(checkpoint, source)
    merger = _Merger(adapter, files)
    merger.check(checkpoint)
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise ValueError(f"{folder} is not empty")
    for path in files:
        save_file(dict(merger.tensors(path, dtype)), target / path.name, metadata={"format": "pt"})
        (target / path.name).chmod(0o644)  # safetensors makes files that only the owner may read
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in _COMPANIONS:
            shutil.copyfile(path, target / path.name)
    if dtype is not None:
        _write_dtype(target / CONFIG_FILE, dtype)
    return merger.survived


class _Merger:
    """An adapter to merge; it keeps track of which of its factors have been used.

    Checkpoints and transformers' modules name a decoder differently, and families differ in it. Below the decoder the
    names are the same, so a module of the adapter is found by the end of its name.
    """

    def __init__(self, adapter: str, files: Sequence[Path]) -> None:
        check_adapter(adapter)
        settings = json.loads(Path(adapter, "adapter_config.json").read_text(encoding="utf-8"))
        self._adapter, self._scale = adapter, settings["lora_alpha"] / settings["r"]
        self._factors = load_file(Path(adapter, "adapter_model.safetensors"))
        modules = {name.rpartition(".lora_")[0] for name in self._factors}
        names = {name for path in files for name in check_safetensors(str(path)) if name != "__metadata__"}
        decoders = [name.removesuffix(EMBEDDINGS) for name in names if name.endswith(EMBEDDINGS)]
        self._module_of = {
            f"{decoder}{below}.weight": module
            for decoder in decoders
            for module in modules
            for below in _ends(module)
            if f"{decoder}{below}.weight" in names
        }
        self._unused = modules - set(self._module_of.values())
        self._wanted = self._kept = 0.0

    @property
    def survived(self) -> float:
        """The share of the update that the tensors so far have kept; 1 where there is no update."""
        return self._kept / self._wanted if self._wanted else 1.0

    def tensors(self, path: Path, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield the merged tensors of one file of the checkpoint, floats in ``dtype`` if it is given."""
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 -- a file, not a dict
                weight: Tensor = file.get_tensor(name)
                if (module := self._module_of.get(name)) is not None:
                    down, up = (self._factors[f"{module}.lora_{part}.weight"].float() for part in ("A", "B"))
                    update = self._scale * (up @ down)
                    merged = (weight.float() + update).to(dtype or weight.dtype)
                    self._wanted += float(update.square().sum())
                    self._kept += float(((merged.float() - weight.float()) * update).sum())
                    weight = merged
                yield name, weight.to(dtype) if dtype is not None and weight.is_floating_point() else weight

    def check(self, checkpoint: str) -> None:
        """Raise ValueError if a factor of the adapter fits no weight."""
        if self._unused:
            raise ValueError(f"{self._adapter} fits another model than {checkpoint}: {min(self._unused)}")


def _write_dtype(file: Path, dtype: torch.dtype) -> None:
    """Say in a ``config.json`` what the weights have become."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    named = str(dtype).removeprefix("torch.")
    for section in (settings, *(part for part in settings.values() if isinstance(part, dict))):
        for key in ("dtype", "torch_dtype"):
            if key in section:
                section[key] = named
    settings["dtype"] = named
    file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _ends(module: str) -> Iterator[str]:
    """What a dotted name ends with, from all of it to its last two parts."""
    parts = module.split(".")
    for start in range(len(parts) - 1):
        yield ".".join(parts[start:])
