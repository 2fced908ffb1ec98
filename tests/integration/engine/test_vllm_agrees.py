"""vLLM itself reads the image and the serve command as we expect."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from support.benchmark_runs import configure, publish_adapter
from support.engine_process import ENGINE, EngineProcess
from support.reward_helpers import CHECKPOINT, PROMPT, picture

from actors.engine.serve_command import serving_command
from actors.engine.start import image_prompt, start_engine
from fgaif_ray.vlm.backbone import Backbone, load_backbone

pytestmark = pytest.mark.vllm


@dataclass(frozen=True)
class Said:
    """What vLLM made of a prompt with an image, and of the options of the serve command."""

    ids: list[int]
    lora: bool
    modules: list[str]


def ask_vllm(ids: Sequence[int], words: Sequence[str]) -> Said:
    """Show an engine the picture, and vLLM's parser the words after ``vllm serve``."""
    engine = start_engine(CHECKPOINT, ENGINE.model_copy(update={"max_model_len": 128}))
    from vllm import SamplingParams
    from vllm.entrypoints.cli.serve import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    prompt = image_prompt(ids, [Image.open(io.BytesIO(picture())).convert("RGB")])
    [output] = engine.generate([prompt], SamplingParams(max_tokens=1), use_tqdm=False)
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(list(words))
    return Said(list(output.prompt_token_ids or ()), parsed.enable_lora, [one.name for one in parsed.lora_modules])


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(CHECKPOINT)


@pytest.fixture(scope="module")
def said(
    vllm_process: EngineProcess, backbone: Backbone, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Said:
    config = configure(repository, tmp_path_factory.mktemp("vllm"))
    publish_adapter(config)
    ids = backbone.front_end.prompt_ids(PROMPT)
    return vllm_process.call(ask_vllm, ids, serving_command(config)[2:])


def test_vllm_expands_the_image_to_the_same_ids(said: Said, backbone: Backbone) -> None:
    image = Image.open(io.BytesIO(picture())).convert("RGB")
    assert tuple(said.ids) == backbone.front_end.encode_prompt(PROMPT, [image]).input_ids


def test_vllm_knows_every_option_of_the_serve_command(said: Said) -> None:
    assert said.lora
    assert said.modules == ["aligned"]
