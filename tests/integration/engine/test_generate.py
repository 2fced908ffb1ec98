"""Prompts through a real engine: one that it refuses fails alone, and large ones keep their seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from support.engine_process import ENGINE, EngineProcess
from support.families import build, photo

from actors.engine.generate import PromptRefusedError, generate
from actors.engine.start import IMAGE_CACHE_GIB, image_prompt, start_engine
from fgaif_ray.vlm.front_end import FrontEnd, load_front_end

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
SMALL, LARGE = (56, 56), (300, 300)
ROOM = 10
"""Tokens that a prompt with a small image leaves; a large one takes more."""
LONG = 600
"""Tokens: eight such prompts are more than a step takes on a CPU."""
REQUESTS = 8


Asked = Sequence[tuple[str, tuple[int, int]]]
"""Prompts about an image of a size."""
Answer = list[int] | str
"""Sampled ids, or why there are none."""


@dataclass(frozen=True)
class Told:
    """What one engine says."""

    answers: list[list[Answer]]
    """Of each batch of prompts."""
    image_cache_gib: float


def ask(model: str, batches: Sequence[tuple[Asked, int]]) -> Told:
    """Batches of prompts and the tokens of each answer, sampled with a seed for each place of a batch."""
    from vllm import SamplingParams

    engine, front_end = start_engine(model, ENGINE), load_front_end(model)
    answers: list[list[Answer]] = []
    for asked, tokens in batches:
        prompts = [
            image_prompt(front_end.prompt_ids(text), [photo(*size, seed)]) for seed, (text, size) in enumerate(asked)
        ]
        parameters = [
            SamplingParams(temperature=1.0, seed=seed, max_tokens=tokens, ignore_eos=True) for seed in range(len(asked))
        ]
        answers.append(
            [
                str(result) if isinstance(result, PromptRefusedError) else list(result.outputs[0].token_ids)
                for result in generate(engine, prompts, parameters)
            ]
        )
    config: Any = engine.llm_engine.model_config.multimodal_config
    return Told(answers, float(config.mm_processor_cache_gb))


def prompt_of(front_end: FrontEnd, tokens: int) -> str:
    """A text that takes so many tokens with a small image."""
    empty = len(front_end.encode_prompt("Q", [photo(*SMALL)]))
    text = "Q" * (1 + tokens - empty)
    assert len(front_end.encode_prompt(text, [photo(*SMALL)])) == tokens
    return text


@pytest.fixture(scope="module")
def told(vllm_process: EngineProcess, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """By one engine, of all that is looked at below."""
    model = str(build("qwen2_5_vl", tmp_path_factory.mktemp("model")))
    front_end = load_front_end(model)
    text = prompt_of(front_end, ENGINE.max_model_len - ROOM)
    assert len(front_end.prompt_ids(text)) < ENGINE.max_model_len < len(front_end.encode_prompt(text, [photo(*LARGE)]))
    long = [(prompt_of(front_end, LONG), SMALL)] * REQUESTS
    batches = [([(text, SMALL), (text, LARGE), ("What is this?", LARGE)], 4), (long, 6), (long[:1], 6)]
    return vllm_process.call(ask, model, batches)


def test_a_prompt_that_its_image_makes_too_long_is_refused_alone(told: Told) -> None:
    first, refused, last = told.answers[0]
    assert len(first) == len(last) == 4
    assert isinstance(refused, str) and "max_model_len" in refused


def test_an_engine_keeps_few_processed_images_in_host_memory(told: Told) -> None:
    assert told.image_cache_gib == IMAGE_CACHE_GIB


def test_many_long_prompts_with_seeds_are_answered_as_each_is_alone(told: Told) -> None:
    _, together, alone = told.answers
    assert [len(one) for one in together] == [6] * REQUESTS
    assert alone == together[:1]
