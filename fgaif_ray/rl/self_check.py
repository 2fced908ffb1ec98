"""What is compared before a model is trusted: its learner with its engine, without and with an adapter.

Seen in the field: adapters that vLLM ignores (vllm issue 48022), stale caches of images (vllm issue 44910), prompts
that a trainer and an engine expand differently (verl issue 3469, trl issue 3847). None of them raises an error.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from PIL.Image import Image

from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.vlm.probes import PROBE_PROMPT, SelfCheckError

VISIBLE: Final = 4.0
"""An adapter must move log-probabilities by this many times what may differ for another reason."""
STRENGTH: Final = 0.3
"""Of the disturbance: what an adapted layer adds to its output, in parts of the size of its input, roughly."""


@dataclass(frozen=True, slots=True)
class EngineAgreement:
    """How far an engine's log-probabilities are from a learner's, and from those without adapter."""

    difference: float
    """Mean over tokens, nats."""
    largest: float
    """Of any token, nats."""
    effect: float
    """Mean difference that the adapter makes in the learner, nats; 0 without one."""
    without_adapter: float
    """Mean difference between the engine, told to use the adapter, and the learner without it, nats."""

    def check(self, tolerance: float, adapted: bool) -> None:
        """Look whether it is good enough.

        Args:
            tolerance: largest mean difference, nats.
            adapted: whether the engine was told to use an adapter.

        Raises:
            SelfCheckError: it is not.
        """
        if self.difference <= tolerance and (not adapted or self.effect >= VISIBLE * self.difference):
            return
        if adapted and VISIBLE * self.without_adapter <= self.difference:
            raise SelfCheckError(
                f"the engine ignores the adapter (its log-probabilities are {self.without_adapter:.2g} nats from those "
                "without it): set align.rollout.sync=merged, or where it is, try another version of vLLM"
            )
        if self.difference <= tolerance:
            raise SelfCheckError(
                f"the adapter moves log-probabilities by {self.effect:.2g} nats alone, which cannot be told from the "
                f"difference of {self.difference:.2g}: give engine and learner the same dtype"
            )
        raise SelfCheckError(
            f"log-probabilities of engine and learner differ by {self.difference:.2g} nats on average, more than "
            f"{tolerance:g}: give both the same dtype, or raise align.rollout.log_prob_tolerance where their kernels "
            "differ"
        )


def compare(
    model: PolicyModel,
    images: Sequence[Image | Sequence[Image]],
    responses: Sequence[Sequence[int]],
    engine_log_probs: Sequence[Sequence[float]],
    prompts: Sequence[str] | None = None,
) -> EngineAgreement:
    """Compare an engine with a learner on responses that the engine sampled.

    Args:
        model: with the adapter that the engine was told to use; a new one changes nothing.
        images: ``[responses]``, one or several each.
        responses: ``[responses][tokens]`` ids.
        engine_log_probs: ``[responses][tokens]`` nats.
        prompts: ``[responses]``; None is ``PROBE_PROMPT`` for all.
    """
    rows = model.encode(prompts or [PROBE_PROMPT] * len(images), images, responses)
    with torch.no_grad():
        own = model.log_probs(rows).log_probs.cpu()  # [responses, tokens]
        plain = model.log_probs(rows, "reference").log_probs.cpu()
    mask = torch.arange(own.shape[1]) < rows.response_lengths.cpu()[:, None]
    theirs = torch.zeros_like(own)
    for row, log_probs in enumerate(engine_log_probs):
        theirs[row, : len(log_probs)] = torch.tensor(log_probs)
    apart = (theirs - own).abs()[mask]
    return EngineAgreement(
        difference=float(apart.mean()),
        largest=float(apart.max()),
        effect=float((own - plain).abs()[mask].mean()),
        without_adapter=float((theirs - plain).abs()[mask].mean()),
    )


@contextmanager
def disturbed(model: PolicyModel, seed: int = 0) -> Iterator[None]:
    """Give the policy a random adapter with a visible effect, for the time of the block.

    A new adapter has a zero factor, so that whoever ignores it is not found out.
    """
    parameters = model.policy_parameters()
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in parameters.items():
            draw = torch.randn(parameter.shape, generator=generator)
            if ".lora_A." in name:  # [rank, input_features]
                draw /= math.sqrt(parameter.shape[1])
            else:  # [output_features, rank]
                draw *= STRENGTH / (model.lora_scale * math.sqrt(parameter.shape[1]))
            parameter.copy_(draw)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name])
