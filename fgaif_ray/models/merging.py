"""A checkpoint's weights with a LoRA adapter added in, tensor by tensor: memory for one tensor at a time."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

# Published checkpoints and transformers' own files name the language model differently.
_LANGUAGE_MODEL = re.compile(r"^(?:model\.language_model|language_model\.model)\.")


def merged_weights(checkpoint: str, adapter: str) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a LLaVA checkpoint, W + alpha / rank * B A where the adapter has an A and a B for it.

    Args:
        checkpoint: folder, or the name of a model that has been downloaded.
        adapter: local PEFT folder.

    Yields:
        The checkpoint's name and the tensor in the checkpoint's dtype; the sum is made in float32.

    Raises:
        ValueError: the adapter has tensors that fit no weight of the checkpoint.
    """
    settings = json.loads(Path(adapter, "adapter_config.json").read_text(encoding="utf-8"))
    scale = settings["lora_alpha"] / settings["r"]
    factors = {_module(name): tensor for name, tensor in load_file(Path(adapter, "adapter_model.safetensors")).items()}
    used: set[str] = set()
    folder = Path(checkpoint if Path(checkpoint).is_dir() else snapshot_download(checkpoint, local_files_only=True))
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 -- a file, not a dict
                weight: Tensor = file.get_tensor(name)
                module = _LANGUAGE_MODEL.sub("model.language_model.", name).removesuffix(".weight")
                down, up = factors.get(f"{module}.lora_A"), factors.get(f"{module}.lora_B")
                if down is not None and up is not None:
                    used |= {f"{module}.lora_A", f"{module}.lora_B"}
                    weight = (weight.float() + scale * (up.float() @ down.float())).to(weight.dtype)
                yield name, weight
    if used != set(factors):
        raise ValueError(f"{adapter} fits another model than {checkpoint}: {sorted(set(factors) - used)[0]}")


def _module(name: str) -> str:
    return name.removeprefix("base_model.model.").removesuffix(".weight")
