"""Families of tiny checkpoints through ``check_model``, with a real engine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from actors.engine.self_check import CheckResult, SelfCheckOptions, check_model
from fgaif_ray.config import LoRAOptions
from support.engine_process import ENGINE
from support.families import FAMILIES, build

EXACT: Final = 1e-3
"""Of a mean difference in float32, nats; what is seen is 5e-6."""
RANK: Final = 8
COMPARED: Final = (
    "prompt ids of engine and learner",
    "log-probabilities",
    "the same with an adapter in the engine",
    "the same with merged weights",
)


def check_family(name: str, folder: Path) -> list[CheckResult]:
    """Build a family's checkpoint and check it in float32.

    Args:
        name: key of ``FAMILIES``.
        folder: where to; it may be missing.
    """
    torch.set_num_threads(1)
    lora = LoRAOptions(rank=RANK, alpha=2 * RANK, target_modules=FAMILIES[name].linear_layers)
    options = SelfCheckOptions(dtype="float32", tolerance=EXACT, lora=lora, engine=ENGINE)
    return list(check_model(str(build(name, folder)), options))


def advice_of(lines: list[CheckResult]) -> Mapping[str, str]:
    """What is wrong, by the line that says it."""
    return {line.what: line.advice for line in lines if line.advice is not None}
