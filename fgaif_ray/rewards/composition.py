"""Dense rewards: class probabilities per segment and fact type -> one number per response token.

FGAIF (reinforcement learning with fine-grained reward): r_t = sum over types k of w_k * r_k,t, given at the
last token of each segment and zero elsewhere. Nothing here rescales a reward unless `RewardOptions` asks
for it.

Where novelty is judged, a segment that repeats what was said earns nothing for being true, and still pays for being
false: r_k = P(consistent) (1 - w P(repeats)) - P(hallucinated), with the weight w of novelty, which by itself earns
nothing.

Where facts are paid instead of segments, P(consistent) and P(hallucinated) are replaced by the expected numbers of true
and of false facts (see ``fact_counts``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fgaif_ray.records import CLASS_NAMES, CONSISTENT, HALLUCINATED, NOVELTY_TYPE
from fgaif_ray.rewards.kinds import Granularity

RewardValue = Literal["expected", "argmax"]
RewardUnit = Literal["segment", "fact"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardOptions:
    """Options of turning class probabilities into token rewards.

    Example: `RewardOptions(weights={"existence": 1.0, "attribute": 0.0, "relation": 1.0})` is the w/o-Att
    ablation.
    """

    weights: Mapping[str, float]
    """Weight of each fact type, in the order of arrays; every type is named, 0 switches one off."""
    value: RewardValue = "expected"
    """`argmax` is the paper's +1 / -1 / 0; `expected` is P(consistent) - P(hallucinated)."""
    unit: RewardUnit = "segment"
    """``segment`` pays a verdict once; ``fact`` for each fact of its type, which takes estimates of their number."""
    false_cost: float = 1.0
    """What a false statement costs, in units of what a true one earns; at least 0. A statement pays where its
    probability to be true is above `false_cost / (1 + false_cost)`."""
    granularity: Granularity = "segment"
    """`segment` pays at each segment end; `response` the same sum once, at the last token."""
    normalise_by_segments: bool = False
    """Divide the segments' rewards by their number, so that saying more does not by itself pay more."""
    missing_eos_penalty: float = 0.0
    """Penalty on the last token of a response that was cut before it ended; at least 0."""
    length_penalty: float = 0.0
    """Penalty on each token beyond `length_target`, at least 0, so that more segments do not pay forever. The critic
    and GAE then see the cost where it arises."""
    length_target: int = 0
    """Tokens without a length penalty; at least 0."""

    @property
    def types(self) -> tuple[str, ...]:
        """The fact types, in the order of arrays."""
        return tuple(self.weights)

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("weights must name the fact types")
        if self.value not in ("expected", "argmax"):
            raise ValueError(f"value must be 'expected' or 'argmax', not {self.value!r}")
        if self.unit not in ("segment", "fact"):
            raise ValueError(f"unit must be 'segment' or 'fact', not {self.unit!r}")
        if self.granularity not in ("segment", "response"):
            raise ValueError(f"granularity must be 'segment' or 'response', not {self.granularity!r}")
        if not self.false_cost >= 0:
            raise ValueError(f"false_cost must be at least 0, not {self.false_cost}")
        if not self.missing_eos_penalty >= 0:
            raise ValueError(f"missing_eos_penalty must be at least 0, not {self.missing_eos_penalty}")
        if not (self.length_penalty >= 0 and self.length_target >= 0):
            raise ValueError(
                f"length_penalty and length_target must be at least 0, not {self.length_penalty}, {self.length_target}"
            )


@dataclass(frozen=True, slots=True)
class ComposedRewards:
    """The reward of one response."""

    per_type: Tensor
    """`[segments, types]` weighted reward of each segment, before any normalisation."""
    per_token: Tensor
    """`[response_tokens]` reward given to PPO, before the KL penalty."""


def segment_rewards(
    probabilities: Tensor,
    weights: Mapping[str, float],
    value: RewardValue = "expected",
    facts: Tensor | None = None,
    false_cost: float = 1.0,
) -> Tensor:
    """Compute the weighted reward of each segment and fact type.

    Args:
        probabilities: `[segments, types, classes]`, types in the order of the weights, classes absent,
            consistent, hallucinated.
        weights: one weight per fact type; that of novelty says how far a repetition takes away what is paid for truth.
        value: `argmax` gives +1 for consistent, -1 for hallucinated, 0 for absent (FGAIF);
            `expected` gives P(consistent) - P(hallucinated).
        facts: `[segments, types, 2]` expected facts, and false ones where one is, to be paid each; None pays segments.
        false_cost: what a false statement costs, in units of what a true one earns.

    Returns:
        `[segments, types]`.

    Raises:
        ValueError: a shape is wrong, or a number is not finite.
    """
    if probabilities.dim() != 3 or probabilities.shape[1:] != (len(weights), len(CLASS_NAMES)):
        raise ValueError(
            f"probabilities must be [segments, {len(weights)}, {len(CLASS_NAMES)}], not {list(probabilities.shape)}"
        )
    if not bool(torch.isfinite(probabilities).all()):
        raise ValueError("probabilities must be finite")
    if value == "argmax":
        probabilities = nn.functional.one_hot(probabilities.argmax(dim=-1), len(CLASS_NAMES)).to(probabilities.dtype)
    elif value != "expected":
        raise ValueError(f"value must be 'expected' or 'argmax', not {value!r}")
    hallucinated = probabilities[..., HALLUCINATED]  # [segments, types]
    true, false = probabilities[..., CONSISTENT], hallucinated  # [segments, types] each
    if facts is not None:
        if facts.shape != (*true.shape, 2) or not bool(torch.isfinite(facts).all()):
            raise ValueError(f"facts must be finite, [segments, {len(weights)}, 2], not {list(facts.shape)}")
        stated, wrong = facts.to(true).unbind(dim=-1)  # [segments, types] each
        true, false = true * stated + hallucinated * (stated - wrong), hallucinated * wrong
    scale = probabilities.new_tensor(list(weights.values()))  # [types]
    if NOVELTY_TYPE in weights:
        place = list(weights).index(NOVELTY_TYPE)
        true = true * (1 - scale[place] * hallucinated[:, place : place + 1])
        scale = scale.index_fill(0, torch.tensor([place], device=scale.device), 0.0)
    return (true - false_cost * false) * scale


def reward_segments(probabilities: Tensor, options: RewardOptions, facts: Tensor | None = None) -> Tensor:
    """`segment_rewards` as the options say.

    Raises:
        ValueError: as there, and where facts are to be paid and have not been counted.
    """
    paid = facts if options.unit == "fact" else None
    if options.unit == "fact" and facts is None:
        raise ValueError("unit 'fact' needs reward models that were trained with rewards.fact_counts")
    return segment_rewards(probabilities, options.weights, options.value, paid, options.false_cost)


def token_rewards(segment_totals: Tensor, token_ends: Tensor, response_length: int) -> Tensor:
    """Put each segment's reward on its last token; rewards that share a token add up.

    Args:
        segment_totals: `[segments]`.
        token_ends: `[segments]` integer index, into the response's tokens, of each segment's last token.
        response_length: tokens in the response.

    Returns:
        `[response_length]`; its sum is the sum of `segment_totals`.

    Raises:
        ValueError: the shapes differ or an index lies outside the response.
    """
    if segment_totals.dim() != 1 or segment_totals.shape != token_ends.shape:
        raise ValueError(
            "segment_totals and token_ends must be [segments], "
            f"not {list(segment_totals.shape)} and {list(token_ends.shape)}"
        )
    if token_ends.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"token_ends must be integers, not {token_ends.dtype}")
    outside = (token_ends < 0) | (token_ends >= response_length)
    if bool(outside.any()):
        raise ValueError(
            f"token ends {token_ends[outside].tolist()} lie outside a response of {response_length} tokens"
        )
    rewards = segment_totals.new_zeros(response_length)  # [response_tokens]
    return rewards.index_add_(0, token_ends.to(segment_totals.device), segment_totals)


def compose_rewards(
    probabilities: Tensor,
    token_ends: Tensor,
    response_length: int,
    finish_reason: str,
    options: RewardOptions,
    facts: Tensor | None = None,
) -> ComposedRewards:
    """Compute the dense reward of one response.

    Args:
        probabilities: `[segments, types, classes]` from the reward models; a response without segments is valid; it
            says nothing and earns nothing.
        token_ends: `[segments]` index of each segment's last token.
        response_length: tokens in the response, at least 1.
        finish_reason: `stop` where the response ended by itself; anything else takes the missing-EOS penalty.
        options: weights and choices; `normalise_by_segments` does not apply to the length penalty.
        facts: `[segments, types, 2]`, see `segment_rewards`; needed where facts are paid, and not looked at elsewhere.

    Raises:
        ValueError: a shape or an index does not fit, the response has no token, or facts are paid and not counted.
    """
    if response_length < 1:
        raise ValueError("a response needs at least one token to carry a reward")
    per_type = reward_segments(probabilities, options, facts)  # [segments, types]
    totals = per_type.sum(dim=1)  # [segments]
    if options.normalise_by_segments:
        totals = totals / max(len(totals), 1)
    per_token = token_rewards(totals, token_ends, response_length)  # [response_tokens]
    if options.granularity == "response":
        per_token = torch.zeros_like(per_token)
        per_token[-1] = totals.sum()
    if finish_reason != "stop":
        per_token[-1] -= options.missing_eos_penalty
    if options.length_penalty and response_length > options.length_target:
        if options.granularity == "response":
            per_token[-1] -= options.length_penalty * (response_length - options.length_target)
        else:
            per_token[options.length_target :] -= options.length_penalty
    return ComposedRewards(per_type=per_type, per_token=per_token)
