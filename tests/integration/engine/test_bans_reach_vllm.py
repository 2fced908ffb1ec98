"""vLLM's own limit of banned tokens, and what every worker tells of its model's."""

from pathlib import Path
from typing import Any

import pytest
from support.label_helpers import ANNOTATOR, make_config

from actors.alignment.rollout import RolloutWorker
from actors.engine.bans import MOST_IDS, RUNNER_VARIABLE, choose_model_runner
from actors.evaluation.generator import Generator
from actors.sampling.sampler import Sampler
from fgaif_ray.config import Config
from fgaif_ray.vlm.front_end import FrontEnd

pytestmark = pytest.mark.vllm


@pytest.fixture
def banned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What engines were told at their start; the model bans 2,000 tokens."""
    told: list[int] = []
    monkeypatch.setattr(FrontEnd, "banned_token_ids", list(range(2000)))
    for module in ("sampling.sampler", "evaluation.generator", "alignment.rollout"):
        monkeypatch.setattr(
            f"actors.{module}.start_engine", lambda *_arguments, banned=0, **_options: told.append(banned)
        )
    return told


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = make_config(tmp_path / "run", "http://127.0.0.1:9/v1")
    return config.model_copy(update={"policy": config.policy.model_copy(update={"model": str(ANNOTATOR)})})


def test_every_engine_that_samples_is_told_how_many_tokens_are_banned(
    config: Config, banned: list[int], tmp_path: Path
) -> None:
    (tmp_path / "adapter").mkdir()
    Sampler(config, str(tmp_path))
    Generator(config, str(tmp_path / "adapter"), 4, str(tmp_path))
    RolloutWorker(config, range(2000))
    assert banned == [2000, 2000, 2000]


def test_the_limit_is_vllms() -> None:
    from vllm.v1.worker.gpu.sample.logit_bias import MAX_NUM_LOGIT_BIAS_TOKENS

    assert MAX_NUM_LOGIT_BIAS_TOKENS == MOST_IDS


def test_vllm_reads_the_choice_of_a_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm.envs as environment

    monkeypatch.setenv(RUNNER_VARIABLE, "0")
    monkeypatch.delenv(RUNNER_VARIABLE)
    before: Any = environment.VLLM_USE_V2_MODEL_RUNNER
    choose_model_runner("model", MOST_IDS + 1)
    assert (before, environment.VLLM_USE_V2_MODEL_RUNNER) == (None, False)
