"""Tokens that an engine must never sample, as vLLM can be told of them.

Every request carries them as a bias of its logits. vLLM's model runner V2, which it takes on GPUs, has room for so many
ids of a request and no more; its predecessor, which it takes on CPU, for any number.
"""

import os
from collections.abc import Iterable
from typing import Final

from fgaif_ray.errors import UserError

BAN: Final = -100.0
"""Logit bias of a banned token, the lowest that vLLM takes: a probability of about 1e-43."""
MOST_IDS: Final = 1024
"""Ids of a request's logit bias that the model runner V2 takes."""
RUNNER_VARIABLE: Final = "VLLM_USE_V2_MODEL_RUNNER"


def logit_bias(banned: Iterable[int]) -> dict[int, float]:
    """The argument ``logit_bias`` of ``vllm.SamplingParams`` that bans tokens."""
    return dict.fromkeys(banned, BAN)


def choose_model_runner(model: str, banned: int) -> None:
    """Have vLLM take its model runner V1 for a model with more banned tokens than V2 takes.

    Call it before an engine is started in this process.

    Args:
        model: checkpoint folder or name.
        banned: number of tokens that requests will ban.

    Raises:
        UserError: the environment asks for V2.
    """
    if banned <= MOST_IDS:
        return
    if os.environ.get(RUNNER_VARIABLE, "0").lower() not in ("", "0", "false"):
        raise UserError(
            f"{model} has {banned:,} tokens that must not be sampled, and vLLM's model runner V2 bans {MOST_IDS:,} at "
            f"most: unset {RUNNER_VARIABLE}."
        )
    os.environ[RUNNER_VARIABLE] = "0"
