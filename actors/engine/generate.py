"""Generation with a vLLM engine where one bad prompt is that prompt's failure and no other's."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt


class PromptRefusedError(ValueError):
    """The engine does not take a prompt: it is too long once its images are expanded, or an image does not suit."""


def generate(
    engine: "LLM",
    prompts: "Sequence[TokensPrompt]",
    parameters: "SamplingParams | list[SamplingParams]",
    *,
    adapter: Any = None,
) -> list[Any]:
    """Answer prompts; those that the engine refuses fail alone.

    vLLM looks at all prompts before it computes anything, and refuses them together. The halves are then tried apart,
    which costs little: what it makes of an image is in its cache.

    Args:
        engine: with no request under way.
        prompts: ids with unexpanded images.
        parameters: one for all, or one each.
        adapter: a LoRA request.

    Returns:
        For each prompt vLLM's ``RequestOutput``, or the ``PromptRefusedError`` that says why there is none.
    """
    if not prompts:
        return []
    try:
        return list(engine.generate(list(prompts), parameters, lora_request=adapter, use_tqdm=False))
    except ValueError as error:
        if len(prompts) == 1:
            return [PromptRefusedError(_reason(error))]
    half = len(prompts) // 2
    first, second = (parameters[:half], parameters[half:]) if isinstance(parameters, list) else (parameters, parameters)
    return [
        *generate(engine, prompts[:half], first, adapter=adapter),
        *generate(engine, prompts[half:], second, adapter=adapter),
    ]


def _reason(error: ValueError) -> str:
    """The first sentence of a message."""
    text = " ".join(str(error).split())
    return text.partition(". ")[0].rstrip(".")
