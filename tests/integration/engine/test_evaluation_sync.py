"""How the aligned policy reaches the engine of the evaluation: as an adapter, or merged and rounded."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.label_helpers import ANNOTATOR, make_config

from actors.engine.start import NO_ADAPTERS
from actors.evaluation.generator import Generator
from fgaif_ray.config import Config, change_config
from fgaif_ray.errors import UserError

pytestmark = pytest.mark.vllm

RANK = 4


def configured(folder: Path, *changes: str) -> Config:
    config = make_config(folder / "run", "http://127.0.0.1:9/v1")
    return change_config(config, [f"policy.model={ANNOTATOR}", *changes])


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The ranks that engines were started with; they serve adapters."""
    ranks: list[int | None] = []

    def start(*_: Any, lora_rank: int | None, **__: Any) -> SimpleNamespace:
        ranks.append(lora_rank)
        return SimpleNamespace()

    monkeypatch.setattr("actors.evaluation.generator.start_engine", start)
    return ranks


@pytest.fixture
def without_adapters(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The same of engines that vLLM starts without adapters alone, as for LLaVA-OneVision."""
    ranks: list[int | None] = []

    def start(*_: Any, lora_rank: int | None, **__: Any) -> SimpleNamespace:
        ranks.append(lora_rank)
        if lora_rank is not None:
            raise UserError(f"vLLM does not serve this model (it {NO_ADAPTERS} yet).")
        return SimpleNamespace()

    monkeypatch.setattr("actors.evaluation.generator.start_engine", start)
    return ranks


@pytest.mark.parametrize(
    ("changes", "rank"),
    [
        (["evaluate.engine.dtype=float32", "align.rollout.sync=merged"], None),
        (["evaluate.engine.dtype=float32", "align.rollout.sync=adapter"], RANK),
        (["evaluate.engine.dtype=bfloat16", "align.rollout.sync=merged"], RANK),
        (["evaluate.engine.dtype=bfloat16", "align.rollout.sync=merged", "evaluate.sync=merged"], None),
        (["evaluate.engine.dtype=float32", "align.rollout.sync=merged", "evaluate.sync=adapter"], RANK),
    ],
)
def test_the_adapter_is_merged_only_where_that_is_exact_or_asked_for(
    started: list[int | None], tmp_path: Path, changes: list[str], rank: int | None
) -> None:
    Generator(configured(tmp_path, *changes), str(tmp_path), RANK, str(tmp_path))
    assert started == [rank]


def test_a_family_without_adapters_in_vllm_is_merged_though_it_rounds(
    without_adapters: list[int | None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, "evaluate.engine.dtype=bfloat16", "align.rollout.sync=merged")
    Generator(config, str(tmp_path), RANK, str(tmp_path))
    assert without_adapters == [RANK, None]
    assert "is merged and rounded" in capsys.readouterr().out


def test_an_adapter_that_was_asked_for_is_not_merged_instead(
    without_adapters: list[int | None], tmp_path: Path
) -> None:
    config = configured(tmp_path, "align.rollout.sync=merged", "evaluate.sync=adapter")
    with pytest.raises(UserError, match=NO_ADAPTERS):
        Generator(config, str(tmp_path), RANK, str(tmp_path))
    assert without_adapters == [RANK]
