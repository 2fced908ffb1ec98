"""Photographs of any shape and format through the workers of sampling and labelling, with real engines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from support.engine_process import ENGINE, EngineProcess
from support.families import build
from support.photographs import write_photographs

from actors.engine.blocks import seal
from actors.labelling.fact_checker import FactChecker, FactQuestion, Findings
from actors.sampling.rows import REJECTED_FOLDER, TASK_SCHEMA
from actors.sampling.sampler import Sampler
from fgaif_ray import storage
from fgaif_ray.config import Config, VerifierConfig
from fgaif_ray.feedback.prompts import load_prompt
from fgaif_ray.images import load_image
from fgaif_ray.vlm.front_end import load_front_end

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
FAMILIES = ("qwen2_5_vl", "llava_next", "smolvlm")
PROMPT = "Describe this image in detail."
FACTS = ("There is a woman.", "The flag is blue.")
TOKENS = 24


@dataclass(frozen=True)
class Labelled:
    """What a family said about photographs, and what it found of facts about them."""

    model: str
    photographs: list[Path]
    stage: str
    found: Findings


def sample(config: Config, photographs: Sequence[Path], stage: str) -> None:
    """What a worker of the job makes of a block."""
    rows = [{"image": str(path), "prompt": PROMPT} for path in photographs]
    Sampler(config, stage)(seal(pa.Table.from_pylist(rows, schema=TASK_SCHEMA)))


def check(verifier: VerifierConfig, questions: Sequence[FactQuestion]) -> Findings:
    """Facts about images, asked as the worker of the job does."""
    images = {path: [load_image(path)] for path in dict.fromkeys(image for image, _ in questions)}
    return FactChecker(verifier, {}).ask(questions, images)


@pytest.fixture(scope="module", params=FAMILIES)
def labelled(
    request: pytest.FixtureRequest, vllm_process: EngineProcess, tmp_path_factory: pytest.TempPathFactory
) -> Labelled:
    folder = tmp_path_factory.mktemp("photographs")
    model, stage = str(build(request.param, folder / "model")), str(folder / "responses.partial")
    photographs = write_photographs(folder / "images")
    engine = ENGINE.model_dump()
    verifier = {"model": model, "engine": engine}
    config = Config.model_validate(
        {
            "run": {"dir": str(folder)},
            "data": {"path": str(folder / "images")},
            "policy": {"model": model, "dtype": "float32"},
            "sample": {"max_tokens": TOKENS, "engine": engine},
            "label": {"extractor": {"base_url": "http://127.0.0.1:9/v1", "model": "none"}, "verifier": verifier},
            "rewards": {"backbone": model},
        }
    )
    vllm_process.call(sample, config, photographs, stage)
    questions = [(str(path), fact) for path in photographs for fact in FACTS]
    return Labelled(model, photographs, stage, vllm_process.call(check, config.label.verifier, questions))


def test_every_photograph_is_described(labelled: Labelled) -> None:
    rows = list(storage.read_rows(labelled.stage))
    assert {row["image"] for row in rows} == set(map(str, labelled.photographs))
    assert not storage.exists(storage.join(labelled.stage, REJECTED_FOLDER))
    front_end = load_front_end(labelled.model)
    for row in rows:
        ended = row["token_ids"][-1] in front_end.eos_token_ids
        assert ended if row["finish_reason"] == "stop" else len(row["token_ids"]) == TOKENS


def test_every_fact_about_a_photograph_has_a_probability_of_its_own(labelled: Labelled) -> None:
    found = labelled.found
    assert found.refused == {}
    likely = [answer.p_yes for answer in found.answers.values()]
    assert len(likely) == len(labelled.photographs) * len(FACTS) == len(set(likely))
    assert all(0 < one < 1 for one in likely)


def test_engine_and_learner_read_photographs_as_equally_many_tokens(labelled: Labelled) -> None:
    front_end, prompt = load_front_end(labelled.model), load_prompt("verify-v1")
    images = [load_image(str(path)) for path in labelled.photographs]
    asked = [prompt.render(statement=fact) for fact in FACTS]
    own = [len(front_end.encode_prompt(text, [image])) for image in images for text in asked]
    assert labelled.found.prompt_tokens == sum(own)
