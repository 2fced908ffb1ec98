"""Generation with a vLLM engine where one bad prompt is that prompt's failure and no other's."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams
    from vllm.inputs import TokensPrompt

ADVICE: Final = re.compile(r"\.? (?:Please|Make sure|\(parameter=)")
"""Where vLLM's messages begin to advise."""


class PromptRefusedError(ValueError):
    """The engine does not take a prompt: it is too long once its images are expanded, or an image does not suit."""


def generate(
    engine: "LLM", prompts: "Sequence[TokensPrompt]", parameters: "Sequence[SamplingParams]", *, adapter: Any = None
) -> "list[RequestOutput | PromptRefusedError]":
    """Answer prompts with an engine of one's own; see ``answer_each``.

    Args:
        engine: with no request under way.
        prompts: ids with unexpanded images.
        parameters: one for each prompt.
        adapter: a LoRA request.
    """

    def ask(some: "Sequence[TokensPrompt]", own: "Sequence[SamplingParams]") -> "list[RequestOutput]":
        return engine.generate(list(some), list(own), lora_request=adapter, use_tqdm=False)

    return answer_each(ask, prompts, parameters)


def answer_each(
    ask: "Callable[[Sequence[TokensPrompt], Sequence[SamplingParams]], list[RequestOutput]]",
    prompts: "Sequence[TokensPrompt]",
    parameters: "Sequence[SamplingParams]",
) -> "list[RequestOutput | PromptRefusedError]":
    """Answer prompts; those that the engine refuses fail alone.

    vLLM looks at all prompts before it computes anything, and refuses them together. The halves are then tried apart,
    which costs little: what it makes of the last images is in its cache.

    Args:
        ask: gives an engine prompts with their parameters.
        prompts: ids with unexpanded images.
        parameters: one for each prompt.

    Returns:
        For each prompt its output, or why there is none.
    """
    if not prompts:
        return []
    from vllm.exceptions import VLLMClientError

    try:
        return list(ask(prompts, parameters))
    except (ValueError, VLLMClientError) as error:
        if len(prompts) == 1:
            return [PromptRefusedError(_reason(error))]
    half = len(prompts) // 2
    return [
        *answer_each(ask, prompts[:half], parameters[:half]),
        *answer_each(ask, prompts[half:], parameters[half:]),
    ]


def _reason(error: Exception) -> str:
    """What vLLM says, without its advice, and with the setting that the limit comes from."""
    said = ADVICE.split(" ".join(str(error).split()))[0].rstrip(". ")
    return f"{said} (max_model_len of the engine)" if "length" in said else said
