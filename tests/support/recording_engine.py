"""An engine that remembers the images it is shown; what it answers means nothing."""

from types import SimpleNamespace
from typing import Any

EOS = 2


class RecordingEngine:
    """What workers use of ``vllm.LLM``."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []
        """Width and height of the image of each prompt."""

    def generate(self, prompts: list[Any], parameters: Any, **_options: Any) -> list[Any]:
        """Answer each prompt with the EOS token, every token as likely as any other."""
        self.sizes += [prompt["multi_modal_data"]["image"].size for prompt in prompts]
        first = parameters[0] if isinstance(parameters, list) else parameters
        wanted = first.logprob_token_ids or []
        output = SimpleNamespace(
            token_ids=[EOS], finish_reason="stop", logprobs=[{one: SimpleNamespace(logprob=-1.0) for one in wanted}]
        )
        return [SimpleNamespace(outputs=[output], prompt_token_ids=[], num_cached_tokens=0) for _ in prompts]
