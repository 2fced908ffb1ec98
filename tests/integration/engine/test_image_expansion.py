"""vLLM puts as many image tokens into a prompt as the backbone."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.paths import ROOT
from support.reward_helpers import CHECKPOINT, PROMPT, picture

from fgaif_ray.vlm.backbone import load_backbone

EXPAND_IN_VLLM = """
import json, sys
from PIL import Image
from actors.engine.start import image_prompt, start_engine
from fgaif_ray.config import EngineConfig

checkpoint, picture, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
options = {"max_model_len": 128, "max_num_seqs": 2, "kv_cache_gib": 0.1, "enforce_eager": True, "threads": 1}
engine = start_engine(checkpoint, EngineConfig(dtype="float32", **options))
from vllm import SamplingParams
prompt = image_prompt(ids, Image.open(picture).convert("RGB"))
[output] = engine.generate([prompt], SamplingParams(max_tokens=1), use_tqdm=False)
print(json.dumps(output.prompt_token_ids))
"""


@pytest.mark.vllm
def test_vllm_expands_the_image_to_the_same_ids(tmp_path: Path) -> None:
    backbone, image = load_backbone(CHECKPOINT), Image.open(io.BytesIO(picture()))
    image.save(tmp_path / "image.png")
    ids = json.dumps(backbone.front_end.prompt_ids(PROMPT))
    finished = subprocess.run(
        [sys.executable, "-c", EXPAND_IN_VLLM, CHECKPOINT, str(tmp_path / "image.png"), ids],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert json.loads(finished.stdout.splitlines()[-1]) == backbone.front_end.expanded_prompt_ids(PROMPT, image)
