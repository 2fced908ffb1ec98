"""Floating-point operations that a model's mathematics asks for, and what a device can do at most.

A matrix product of m x k by k x n counts 2mkn. Counted are the decoder's linear layers, its adapters, causal
attention, and the vocabulary head where response tokens are scored, on real tokens alone: padding, the vision tower,
normalisation, and what activation checkpointing computes again do not count, so the utilisation is a lower bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.gpu_bare import adapted_layers
from fgaif_ray.vlm.backbone import Backbone

PEAK_TFLOPS: Final = {
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H200 NVL": 835.0,
    "H200": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
}
"""Dense bfloat16 products without sparsity, from the vendor's data sheets, by what a device's name holds; the first
match counts."""


def peak_tflops(device_name: str) -> float | None:
    """None for a device that is not known here."""
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in device_name), None)


@dataclass(frozen=True, slots=True)
class ModelWork:
    """Weights that tokens are multiplied with."""

    decoder: int
    """Of the decoder's frozen linear layers."""
    adapter: int
    """Of one LoRA adapter."""
    vocabulary: int
    """Of the vocabulary head."""
    attention: int
    """Operations of causal attention for a sequence, over its length squared: two products, half of each."""

    @classmethod
    def of(cls, backbone: Backbone) -> "ModelWork":
        """Reads the sizes off the model, all of whose decoder's linear layers have adapters of one rank."""
        layers: list[Any] = adapted_layers(backbone)
        text = backbone.model.config.text_config
        first = layers[0].active_adapters[0]
        return cls(
            decoder=sum(layer.get_base_layer().weight.numel() for layer in layers),
            adapter=sum(layer.lora_A[first].weight.numel() + layer.lora_B[first].weight.numel() for layer in layers),
            vocabulary=int(backbone.model.get_output_embeddings().weight.numel()),
            attention=2 * int(text.num_hidden_layers) * int(text.hidden_size),
        )

    def forward(self, lengths: Sequence[int], *, scored: int = 0, adapted: bool = True) -> int:
        """One pass over sequences.

        Args:
            lengths: tokens of each.
            scored: tokens whose log-probabilities are asked for.
            adapted: with an adapter.
        """
        weights = self.decoder + (self.adapter if adapted else 0)
        products = 2 * weights * sum(lengths) + 2 * self.vocabulary * scored
        return products + self.attention * sum(length * length for length in lengths)

    def backward(self, lengths: Sequence[int], *, scored: int = 0) -> int:
        """The gradients of a pass: those of activations everywhere, those of weights for the adapter alone."""
        products = (2 * self.decoder + 4 * self.adapter) * sum(lengths) + 2 * self.vocabulary * scored
        return products + 2 * self.attention * sum(length * length for length in lengths)

    def update(self, lengths: Sequence[int], scored: int, epochs: int) -> int:
        """A PPO update: policy, reference and critic once, then both trained for the epochs."""
        policy = self.forward(lengths, scored=scored)
        critic = self.forward(lengths)
        reference = self.forward(lengths, scored=scored, adapted=False)
        trained = policy + critic + self.backward(lengths, scored=scored) + self.backward(lengths)
        return policy + reference + critic + epochs * trained
