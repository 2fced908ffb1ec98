"""Merging of a LoRA adapter into a checkpoint's weights, tensor by tensor.

It needs memory for one tensor at a time, or for one file of the checkpoint when it writes a merged copy.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fgaif_ray.vlm.checkpoint import check_adapter, check_checkpoint, check_safetensors, weight_files

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


def write_merged(checkpoint: str, adapter: str, folder: str | Path) -> None:
    """Write the checkpoint with the adapter merged in: the same files, names and dtypes, other weights.

    Args:
        checkpoint: folder, or the name of a model that has been downloaded.
        adapter: local PEFT folder.
        folder: is made; it may exist only if it is empty.

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
        save_file(dict(merger.tensors(path)), target / path.name, metadata={"format": "pt"})
        (target / path.name).chmod(0o644)  # safetensors makes files that only the owner may read
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in _COMPANIONS:
            shutil.copyfile(path, target / path.name)


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

    def tensors(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        """Yield the merged tensors of one file of the checkpoint."""
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 -- a file, not a dict
                weight: Tensor = file.get_tensor(name)
                if (module := self._module_of.get(name)) is not None:
                    down, up = (self._factors[f"{module}.lora_{part}.weight"].float() for part in ("A", "B"))
                    weight = (weight.float() + self._scale * (up @ down)).to(weight.dtype)
                yield name, weight

    def check(self, checkpoint: str) -> None:
        """Raise ValueError if a factor of the adapter fits no weight."""
        if self._unused:
            raise ValueError(f"{self._adapter} fits another model than {checkpoint}: {min(self._unused)}")


def _ends(module: str) -> Iterator[str]:
    """What a dotted name ends with, from all of it to its last two parts."""
    parts = module.split(".")
    for start in range(len(parts) - 1):
        yield ".".join(parts[start:])
