"""LoRA adapters on the decoder of a vision-language model, of any family.

Their layers have the results of PEFT's and less traffic through the device's memory. PEFT's own layer adds an adapter
in five operations over tensors of the layer's full width, and over a bfloat16 backbone it computes the adapter in
float32, on a GPU many times slower. Here an adapter costs two matrix products, the second accumulating into the frozen
layer's output (which cuBLAS does at no cost), in the backbone's dtype. The weights, their gradients and the optimiser
stay float32, and saved files stay PEFT adapters.
"""

import re
from typing import Any

from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn

from fgaif_ray.config import LoRAOptions
from fgaif_ray.errors import UserError


class LoRALinear(Linear):
    """PEFT's LoRA layer over ``nn.Linear`` with a faster forward pass; see the module."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's output, ``[..., output_features]``, for ``[..., input_features]``.

        PEFT handles what goes beyond plain LoRA: merged weights, dropout, variants such as DoRA, adapters by row.
        """
        names = [name for name in self.active_adapters if name in self.lora_A]
        if args or kwargs or self.disable_adapters or self.merged or not all(map(self._is_plain, names)):
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        flat = x.reshape(-1, x.shape[-1])  # [tokens, input_features]
        result: Tensor = self.base_layer(flat)  # [tokens, output_features]
        for name in names:
            first: Any = self.lora_A[name].weight  # [rank, input_features]
            second: Any = self.lora_B[name].weight  # [output_features, rank]
            low_rank = nn.functional.linear(flat, first.to(flat.dtype))  # [tokens, rank]
            result = result.addmm_(low_rank, second.to(flat.dtype).t(), alpha=self.scaling[name])
        return result.view(*x.shape[:-1], result.shape[-1])

    def _is_plain(self, name: str) -> bool:
        return (
            name not in self.lora_variant
            and isinstance(self.lora_dropout[name], nn.Identity)
            and self.lora_B[name].bias is None
        )


def with_own_layers(config: LoraConfig) -> LoraConfig:
    """Return the same configuration, with which PEFT adapts every ``nn.Linear`` by ``LoRALinear``."""
    config._register_custom_module({nn.Linear: LoRALinear})
    return config


def decoder_lora(model: Any, options: LoRAOptions, path: str) -> LoraConfig:
    """The configuration of an adapter on layers of a model's decoder; the vision tower stays as it is.

    Args:
        model: of transformers.
        options: rank, alpha, and the last parts of the layers' names.
        path: of the checkpoint, which saved adapters name.

    Raises:
        UserError: the decoder has no linear layer of one of the names.
    """
    decoder = model.get_decoder()
    place = next(name for name, module in model.named_modules() if module is decoder)
    # A pattern instead of names: vision towers have layers of the same names.
    pattern = rf"{re.escape(place)}\.(?:.*\.)?(?:{'|'.join(map(re.escape, options.target_modules))})"
    linear = (name for name, module in decoder.named_modules() if isinstance(module, nn.Linear))
    plain = (name.removesuffix(".base_layer") for name in linear if ".lora_" not in name)  # under adapters too
    known = {name.rpartition(".")[2] for name in plain}
    if missing := sorted(set(options.target_modules) - known):
        raise UserError(
            f"The decoder of {path} has no linear layer {missing[0]!r}: choose lora.target_modules among "
            f"{', '.join(sorted(known))}."
        )
    return LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=pattern,
        lora_dropout=0.0,
        base_model_name_or_path=path,
    )
