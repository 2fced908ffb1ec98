"""The families that the suite leaves out, through a real engine and the learner: what holds, and what is said else."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.engine_process import ENGINE, EngineProcess
from support.families import FAMILIES, build
from support.family_checks import COMPARED, RANK, advice_of, check_family
from support.paths import ROOT

from actors.engine.start import start_engine
from fgaif_ray.errors import UserError

pytestmark = [pytest.mark.vllm, pytest.mark.proof]
IDS, LOG_PROBS, ADAPTER, MERGED = COMPARED
AGREE = ("llava", "llava_interleave", "pixtral", "granite_vision", "qwen2_vl", "mistral3", "glm4v")
WITHOUT_ADAPTERS = ("llava_onevision", "cohere2_vision")
"""Families that vLLM serves no adapters for."""


def serve_with_adapters(model: str) -> None:
    start_engine(model, ENGINE, lora_rank=RANK)


@pytest.mark.parametrize("name", AGREE)
def test_engine_and_learner_agree(name: str, vllm_process: EngineProcess, tmp_path: Path) -> None:
    lines = vllm_process.call(check_family, name, tmp_path / name)
    assert advice_of(lines) == {}
    assert set(COMPARED) <= {line.what for line in lines}


@pytest.mark.parametrize("name", WITHOUT_ADAPTERS)
def test_merged_weights_agree_where_vllm_serves_no_adapters(
    name: str, vllm_process: EngineProcess, tmp_path: Path
) -> None:
    lines = vllm_process.call(check_family, name, tmp_path / name)
    advice = "vLLM serves no adapters for this family: set align.rollout.sync=merged"
    assert advice_of(lines) == {ADAPTER: advice}
    assert not any(line.failed for line in lines)
    assert {IDS, LOG_PROBS, MERGED} <= {line.what for line in lines}


def test_adapters_that_vllm_does_not_serve_are_refused_in_one_sentence(
    vllm_process: EngineProcess, tmp_path: Path
) -> None:
    model = str(build("llava_onevision", tmp_path / "model"))
    with pytest.raises(UserError, match=r"does not support LoRA yet\): set align\.rollout\.sync=merged\.$"):
        vllm_process.call(serve_with_adapters, model)


def test_an_engine_that_computes_something_else_is_found_out(vllm_process: EngineProcess, tmp_path: Path) -> None:
    """On a CPU vLLM's Gemma 3 attends causally within an image."""
    lines = vllm_process.call(check_family, "gemma3", tmp_path / "gemma3")
    assert {line.what for line in lines if line.failed} == {LOG_PROBS, MERGED}
    found = advice_of(lines)
    assert IDS not in found
    for what in (LOG_PROBS, MERGED):
        assert found[what].startswith("log-probabilities of engine and learner differ by ")


def test_what_vllm_does_not_run_on_a_cpu_is_told_in_one_sentence(vllm_process: EngineProcess, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^vLLM does not serve .*qwen3_5 as it is asked to \(Chunked prefill is"):
        vllm_process.call(check_family, "qwen3_5", tmp_path / "qwen3_5")


def test_the_command_takes_the_layers_of_the_adapter(tmp_path: Path) -> None:
    model = str(build("glm4v", tmp_path / "model"))
    command = [sys.executable, "-m", "jobs.check_model", model, "--dtype", "float32", "--max-model-len", "1024"]
    runs = [
        subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT, check=False)
        for options in ([], ["--target-modules", ",".join(FAMILIES["glm4v"].linear_layers)])
    ]
    assert [run.returncode for run in runs] == [2, 0], runs[1].stdout[-2000:] + runs[1].stderr[-2000:]
    assert "has no linear layer 'gate_proj': choose lora.target_modules among down_proj, gate_up_proj" in runs[0].stderr
    assert "family glm4v (tested)" in runs[1].stdout


def test_every_family_that_chats_is_checked_somewhere() -> None:
    suite = {"qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm", "idefics3", "llava_next"}
    checked = {*AGREE, *WITHOUT_ADAPTERS, *suite, "gemma3", "qwen3_5"}
    assert checked == {name for name, family in FAMILIES.items() if family.template_file}
