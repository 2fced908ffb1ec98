"""The families that people use most, through a real engine and the learner; ``tests/proofs/vlm`` has all others."""

from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

import pytest
from support.engine_process import engine_process
from support.family_checks import COMPARED, advice_of, check_family

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
FAMILIES = ("qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm", "idefics3", "llava_next")


@pytest.fixture(scope="module")
def process() -> Iterator[Executor]:
    with engine_process() as started:
        yield started


@pytest.mark.parametrize("name", FAMILIES)
def test_engine_and_learner_agree(name: str, process: Executor, tmp_path: Path) -> None:
    lines = process.submit(check_family, name, tmp_path / name).result()
    assert advice_of(lines) == {}
    assert set(COMPARED) <= {line.what for line in lines}
