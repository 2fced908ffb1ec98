"""Dense rewards on the tokens of a policy whose tokenizer the service does not know.

It needs torch, transformers' tokenizers and sentencex. Trainers that take token rewards have the first two.
"""

from collections.abc import Sequence

import torch

from fgaif_ray.rewards.composition import RewardOptions, compose_rewards
from fgaif_ray.segments import Span, segment_token_ends
from fgaif_ray.serving.wire import ModelList, ScoredResponse
from fgaif_ray.token_offsets import Decoder, token_offsets


def decode_response(tokenizer: Decoder, token_ids: Sequence[int]) -> str:
    """Decode sampled ids without special tokens: the text to score, so that rewards find their tokens."""
    decoded = tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return decoded if isinstance(decoded, str) else "".join(decoded)


def service_options(models: ModelList) -> RewardOptions:
    """Return the settings with which the service composes rewards."""
    return RewardOptions(
        weights=models.weights,
        value="argmax" if models.value == "argmax" else "expected",
        unit="fact" if models.unit == "fact" else "segment",
        false_cost=models.false_cost,
        granularity="response" if models.granularity == "response" else "segment",
        normalise_by_segments=models.normalise_by_segments,
    )


def place_rewards(
    scored: ScoredResponse,
    token_ids: Sequence[int],
    tokenizer: Decoder,
    options: RewardOptions,
    finish_reason: str = "stop",
) -> list[float]:
    """Place the dense reward of a response on its sampled tokens.

    Args:
        scored: the service's answer about `decode_response(tokenizer, token_ids)`.
        token_ids: sampled ids, `[response_tokens]`.
        tokenizer: of the policy that sampled them.
        options: weights and choices, e.g. `service_options`.
        finish_reason: `stop` where the response ended by itself; others take the options' missing-EOS penalty.

    Returns:
        `[response_tokens]`: at the last token of each segment the weighted sum of its rewards (those that
        share a token add up), zero elsewhere. Empty for a response without tokens.

    Raises:
        ValueError: the answer is about another text than the ids decode to, or counts no facts where they are paid.
    """
    if scored.response != decode_response(tokenizer, token_ids):
        raise ValueError("the scored text is not what the token ids decode to: score decode_response(tokenizer, ids)")
    if not token_ids:
        return []
    spans = [Span(segment.start, segment.end) for segment in scored.segments]
    ends = segment_token_ends(spans, token_offsets(tokenizer, token_ids), scored.response)
    types = options.types
    triples = [[segment.probabilities[fact_type] for fact_type in types] for segment in scored.segments]
    probabilities = torch.tensor(triples, dtype=torch.float32).reshape(-1, len(types), 3)  # [segments, types, classes]
    places = torch.tensor(ends, dtype=torch.int64)  # [segments]
    counts = [[segment.facts[name] for name in types] for segment in scored.segments if segment.facts is not None]
    facts = torch.tensor(counts, dtype=torch.float32).reshape(-1, len(types), 2)  # [segments, types, 2]
    counted = facts if len(facts) == len(probabilities) else None
    composed = compose_rewards(probabilities, places, len(token_ids), finish_reason, options, counted)
    per_token: list[float] = composed.per_token.tolist()
    return per_token
