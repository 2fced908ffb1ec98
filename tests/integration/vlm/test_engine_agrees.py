"""The families that people use most, through a real engine and the learner; ``tests/proofs/vlm`` has all others."""

from pathlib import Path

import pytest
from support.engine_process import EngineProcess
from support.family_checks import COMPARED, advice_of, check_family

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
FAMILIES = ("qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm", "idefics3", "llava_next")


@pytest.mark.parametrize("name", FAMILIES)
def test_engine_and_learner_agree(name: str, vllm_process: EngineProcess, tmp_path: Path) -> None:
    lines = vllm_process.call(check_family, name, tmp_path / name)
    assert advice_of(lines) == {}
    assert set(COMPARED) <= {line.what for line in lines}
