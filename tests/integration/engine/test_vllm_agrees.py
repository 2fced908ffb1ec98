"""vLLM itself, in one process that imports it: it reads the image and the serve command as we expect."""

import io
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from support.benchmark_runs import configure, publish_adapter
from support.paths import ROOT
from support.reward_helpers import CHECKPOINT, PROMPT, picture

from actors.engine.serve_command import serving_command
from fgaif_ray.vlm.backbone import Backbone, load_backbone

pytestmark = pytest.mark.vllm

IN_VLLM = """
import json, sys
from PIL import Image
from actors.engine.start import image_prompt, start_engine
from fgaif_ray.config import EngineConfig

checkpoint, picture, ids, words = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
options = {"max_model_len": 128, "max_num_seqs": 2, "kv_cache_gib": 0.1, "enforce_eager": True, "threads": 1}
engine = start_engine(checkpoint, EngineConfig(dtype="float32", **options))
from vllm import SamplingParams
from vllm.entrypoints.cli.serve import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
prompt = image_prompt(ids, [Image.open(picture).convert("RGB")])
[output] = engine.generate([prompt], SamplingParams(max_tokens=1), use_tqdm=False)
parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
modules = [module.name for module in parsed.lora_modules]
print(json.dumps({"ids": output.prompt_token_ids, "lora": parsed.enable_lora, "modules": modules}))
"""


@dataclass(frozen=True)
class Said:
    """What vLLM made of a prompt with an image, and of the options of the serve command."""

    ids: list[int]
    lora: bool
    modules: list[str]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(CHECKPOINT)


@pytest.fixture(scope="module")
def said(backbone: Backbone, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Said:
    folder = tmp_path_factory.mktemp("vllm")
    (folder / "image.png").write_bytes(picture())
    config = configure(repository, folder)
    publish_adapter(config)
    ids, words = json.dumps(backbone.front_end.prompt_ids(PROMPT)), json.dumps(serving_command(config)[2:])
    finished = subprocess.run(
        [sys.executable, "-c", IN_VLLM, CHECKPOINT, str(folder / "image.png"), ids, words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return Said(**json.loads(finished.stdout.splitlines()[-1]))


def test_vllm_expands_the_image_to_the_same_ids(said: Said, backbone: Backbone) -> None:
    image = Image.open(io.BytesIO(picture())).convert("RGB")
    assert tuple(said.ids) == backbone.front_end.encode_prompt(PROMPT, [image]).input_ids


def test_vllm_knows_every_option_of_the_serve_command(said: Said) -> None:
    assert said.lora
    assert said.modules == ["aligned"]
