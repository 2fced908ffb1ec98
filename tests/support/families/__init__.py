"""Tiny checkpoints with random weights of many families of vision-language models, laid out as published ones are.

``build("qwen2_5_vl", folder)`` writes one; `FAMILIES` says what there is. `reference_log_probs` computes what
transformers alone makes of it.
"""

from support.families.family import Family
from support.families.photos import photo
from support.families.reference import ask, reference_inputs, reference_log_probs
from support.families.registry import FAMILIES, build

__all__ = ["FAMILIES", "Family", "ask", "build", "photo", "reference_inputs", "reference_log_probs"]
