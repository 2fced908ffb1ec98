"""All families by name, and how to build one."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch

from support.families.cohere import COHERE_FAMILIES
from support.families.family import Family
from support.families.gemma import GEMMA_FAMILIES
from support.families.glm4v import GLM4V_FAMILIES
from support.families.idefics import IDEFICS_FAMILIES
from support.families.internvl import INTERNVL_FAMILIES
from support.families.llava import LLAVA_FAMILIES
from support.families.mistral3 import MISTRAL3_FAMILIES
from support.families.published import write_checkpoint
from support.families.qwen import QWEN_FAMILIES
from support.families.qwen3_5 import QWEN3_5_FAMILIES

_ALL: Final = (
    *LLAVA_FAMILIES,
    *QWEN_FAMILIES,
    *INTERNVL_FAMILIES,
    *IDEFICS_FAMILIES,
    *GEMMA_FAMILIES,
    *MISTRAL3_FAMILIES,
    *GLM4V_FAMILIES,
    *COHERE_FAMILIES,
    *QWEN3_5_FAMILIES,
)
FAMILIES: Final[Mapping[str, Family]] = MappingProxyType({family.name: family for family in _ALL})
VISION_PARTS: Final = ("vision", "visual", "projector", "connector")
VISION_SPREAD: Final = 0.15
"""Standard deviation of the tower's and the connector's weights: with the usual 0.02 every image looks alike."""


def build(name: str, folder: Path, seed: int = 0) -> Path:
    """Write a tiny checkpoint with random weights; the same seed writes the same weights.

    Args:
        name: key of `FAMILIES`.
        folder: where to; it may be missing.

    Returns:
        The folder.
    """
    family = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        draft = family.draft()
        widen_vision(draft.model)
    write_checkpoint(family, draft, folder)
    return folder


def widen_vision(model: Any) -> None:
    """Draw weights with which the image matters to the answer."""
    for name, weight in model.named_parameters():
        if any(part in name for part in VISION_PARTS) and weight.ndim > 1 and "position" not in name:
            torch.nn.init.normal_(weight, std=VISION_SPREAD)
