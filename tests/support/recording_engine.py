"""An engine that remembers what it is shown and reads prompts as a real one does; what it answers means nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL.Image import Image

from fgaif_ray.config import Config, VerifierConfig
from fgaif_ray.vlm.front_end import load_front_end
from support.label_helpers import ANNOTATOR, BLOCK, ENGINE, make_config

EOS = 2


class RecordingEngine:
    """What workers use of ``vllm.LLM``."""

    def __init__(self, model: str = str(ANNOTATOR)) -> None:
        self._front_end = load_front_end(model)
        self.blind = False
        """Whether it reads prompts without what stands for images, as no real one should."""
        self.sizes: list[tuple[int, int]] = []
        """Width and height of the images of all prompts, one after the other."""
        self.prompts: list[tuple[list[int], list[Image]]] = []
        """Token ids and images of each prompt."""

    def generate(self, prompts: list[Any], parameters: Any, **_options: Any) -> list[Any]:
        """Answer each prompt with the EOS token, every token as likely as any other."""
        self.prompts += [(prompt["prompt_token_ids"], prompt["multi_modal_data"]["image"]) for prompt in prompts]
        self.sizes += [image.size for prompt in prompts for image in prompt["multi_modal_data"]["image"]]
        first = parameters[0] if isinstance(parameters, list) else parameters
        wanted = first.logprob_token_ids or []
        output = SimpleNamespace(
            token_ids=[EOS],
            finish_reason="stop",
            logprobs=[{one: SimpleNamespace(logprob=-1.0) for one in (EOS, *wanted)}],
        )
        return [
            SimpleNamespace(outputs=[output], prompt_token_ids=self._read(prompt), num_cached_tokens=0)
            for prompt in prompts
        ]

    def _read(self, prompt: Any) -> list[int]:
        """The prompt with its images expanded by the checkpoint's own processor."""
        ids, images = prompt["prompt_token_ids"], prompt["multi_modal_data"]["image"]
        text = self._front_end.tokenizer.decode(ids)
        read = self._front_end.processor(text=[text], images=[images], add_special_tokens=False)["input_ids"][0]
        image = self._front_end.config.image_token_id
        return [token for token in read if not (self.blind and token == image)]


def recorded_config(folder: Path, **data: Any) -> Config:
    """A run of a few scenes with a second verifier, whose engines may all be recording ones.

    Args:
        folder: of the run.
        data: keys of its section ``data``.
    """
    config = make_config(folder, "http://127.0.0.1:9/v1", images=BLOCK)
    verifier = VerifierConfig.model_validate({"model": str(ANNOTATOR), "engine": ENGINE})
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "policy": config.policy.model_copy(update={"model": str(ANNOTATOR)}),
            "label": config.label.model_copy(update={"second_verifier": verifier}),
        }
    )
