"""Merging of a LoRA adapter into a checkpoint's weights, tensor by tensor.

It needs memory for one tensor at a time, or for one file of the checkpoint when it writes a merged copy.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from fgaif_ray.vlm.checkpoint import check_adapter, check_checkpoint

# Files of a checkpoint beside its weights: configuration, tokenizer, processor, chat template.
_COMPANIONS: Final = {".json", ".jinja", ".model", ".tiktoken", ".txt"}

# Published checkpoints and transformers' own files name the language model differently.
_LANGUAGE_MODEL = re.compile(r"^(?:model\.language_model|language_model\.model)\.")


def merged_weights(checkpoint: str, adapter: str) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight of a LLaVA checkpoint: W + alpha / rank * B A where the adapter has an A and a B for it.

    Args:
        checkpoint: folder, or the name of a model that has been downloaded.
        adapter: local PEFT folder.

    Yields:
        The checkpoint's name and the tensor in the checkpoint's dtype; the sum is made in float32.

    Raises:
        ValueError: the adapter has tensors that fit no weight of the checkpoint.
    """
    merger = _Merger(adapter)
    for path in _weight_files(check_checkpoint(checkpoint)):
        yield from merger.tensors(path)
    merger.check(checkpoint)


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
    target, source, merger = Path(folder), check_checkpoint(checkpoint), _Merger(adapter)
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise ValueError(f"{folder} is not empty")
    files = _weight_files(source)
    for path in files:
        save_file(dict(merger.tensors(path)), target / path.name, metadata={"format": "pt"})
        (target / path.name).chmod(0o644)  # safetensors makes files that only the owner may read
    merger.check(checkpoint)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in _COMPANIONS:
            shutil.copyfile(path, target / path.name)


class _Merger:
    """An adapter to merge; it keeps track of which of its factors have been used."""

    def __init__(self, adapter: str) -> None:
        check_adapter(adapter)
        settings = json.loads(Path(adapter, "adapter_config.json").read_text(encoding="utf-8"))
        self._adapter, self._scale = adapter, settings["lora_alpha"] / settings["r"]
        weights = load_file(Path(adapter, "adapter_model.safetensors"))
        self._factors = {_module(name): tensor for name, tensor in weights.items()}
        self._used: set[str] = set()

    def tensors(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        """Yield the merged tensors of one file of the checkpoint."""
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 -- a file, not a dict
                weight: Tensor = file.get_tensor(name)
                module = _LANGUAGE_MODEL.sub("model.language_model.", name).removesuffix(".weight")
                down, up = self._factors.get(f"{module}.lora_A"), self._factors.get(f"{module}.lora_B")
                if down is not None and up is not None:
                    self._used |= {f"{module}.lora_A", f"{module}.lora_B"}
                    weight = (weight.float() + self._scale * (up.float() @ down.float())).to(weight.dtype)
                yield name, weight

    def check(self, checkpoint: str) -> None:
        """Raise ValueError if a factor of the adapter has not been used."""
        if self._used != set(self._factors):
            unused = sorted(set(self._factors) - self._used)[0]
            raise ValueError(f"{self._adapter} fits another model than {checkpoint}: {unused}")


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _module(name: str) -> str:
    return name.removeprefix("base_model.model.").removesuffix(".weight")
