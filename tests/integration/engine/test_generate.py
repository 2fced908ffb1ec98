"""Prompts through a real engine: one that it refuses fails alone, and large ones keep their seeds."""

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from typing import Any

import pytest
from support.engine_process import ENGINE, engine_process
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


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    with engine_process() as started:
        yield started


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build("qwen2_5_vl", tmp_path_factory.mktemp("model")))


@functools.cache
def engine_of(model: str) -> Any:
    """The one engine of the process that this runs in."""
    return start_engine(model, ENGINE)


def answers(model: str, asked: Sequence[tuple[str, tuple[int, int]]], tokens: int) -> list[list[int] | str]:
    """The answer to each prompt about an image of a size, sampled with a seed of its own, or why there is none."""
    from vllm import SamplingParams

    front_end = load_front_end(model)
    prompts = [
        image_prompt(front_end.prompt_ids(text), [photo(*size, seed)]) for seed, (text, size) in enumerate(asked)
    ]
    parameters = [
        SamplingParams(temperature=1.0, seed=seed, max_tokens=tokens, ignore_eos=True) for seed in range(len(asked))
    ]
    results = generate(engine_of(model), prompts, parameters)
    return [
        str(result) if isinstance(result, PromptRefusedError) else list(result.outputs[0].token_ids)
        for result in results
    ]


def prompt_of(front_end: FrontEnd, tokens: int) -> str:
    """A text that takes so many tokens with a small image."""
    empty = len(front_end.encode_prompt("Q", [photo(*SMALL)]))
    text = "Q" * (1 + tokens - empty)
    assert len(front_end.encode_prompt(text, [photo(*SMALL)])) == tokens
    return text


def test_a_prompt_that_its_image_makes_too_long_is_refused_alone(process: Executor, model: str) -> None:
    front_end = load_front_end(model)
    text = prompt_of(front_end, ENGINE.max_model_len - ROOM)
    assert len(front_end.prompt_ids(text)) < ENGINE.max_model_len < len(front_end.encode_prompt(text, [photo(*LARGE)]))
    asked = [(text, SMALL), (text, LARGE), ("What is this?", LARGE)]
    first, refused, last = process.submit(answers, model, asked, 4).result()
    assert len(first) == len(last) == 4
    assert isinstance(refused, str) and "max_model_len" in refused


def image_cache_gib(model: str) -> float:
    """What the engine was told."""
    config: Any = engine_of(model).llm_engine.model_config.multimodal_config
    return float(config.mm_processor_cache_gb)


def test_an_engine_keeps_few_processed_images_in_host_memory(process: Executor, model: str) -> None:
    assert process.submit(image_cache_gib, model).result() == IMAGE_CACHE_GIB


def test_many_long_prompts_with_seeds_are_answered_as_each_is_alone(process: Executor, model: str) -> None:
    asked = [(prompt_of(load_front_end(model), LONG), SMALL)] * REQUESTS
    together = process.submit(answers, model, asked, 6).result()
    assert [len(answer) for answer in together] == [6] * REQUESTS
    assert process.submit(answers, model, asked[:1], 6).result() == together[:1]
