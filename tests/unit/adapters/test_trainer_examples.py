"""The files that a user of each trainer starts from: their rows are rewarded, and their commands name what is there."""

import asyncio
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from support.adapter_calls import load_by_path
from support.local_gateway import WEIGHTS, LocalScorer, local_gateway, served
from support.paths import ROOT
from support.preference_data import preference_run
from support.reward_helpers import CHECKPOINT, RESPONSE
from transformers import AutoTokenizer

from fgaif_ray.adapters import common
from fgaif_ray.adapters.skyrl import DenseRewards
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.serving.client import AsyncRewardClient, RewardClient, reward_item
from fgaif_ray.shapes.render import IMAGE_SIZE
from jobs.export import export_preferences

SCRIPTS = sorted((ROOT / "examples").glob("*.sh"))
DATA = {"verl": "verl_grpo.sh", "openrlhf": "openrlhf_ppo.sh", "easyr1": "easyr1_grpo.sh", "skyrl": "skyrl_dense.sh"}
"""Trainers with the scripts that read their rows."""
COLUMN = re.compile(r"data\.(?:\w+_key)[= ](\w+)")
FILE = re.compile(r"(?<!/)examples/\w+\.\w+")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    scorer = LocalScorer(tmp_path_factory.mktemp("rewards"))
    with served(local_gateway(scorer, RewardOptions(weights=WEIGHTS))) as url:
        yield url


@pytest.fixture(autouse=True)
def from_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FGAIF_REWARD_URL", url)
    monkeypatch.setenv("POLICY", CHECKPOINT)
    yield
    common.close_shared_clients()


def rows_of(trainer: str, folder: Path) -> list[dict[str, Any]]:
    path: Path = load_by_path("trainer_data.py").write_rows(trainer, folder, 2)
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return list(pq.read_table(path).to_pylist())


def expected(url: str, folder: Path) -> list[float]:
    """Rewards of the same answer to both images."""
    question = load_by_path("trainer_data.py").QUESTION
    with RewardClient(url) as client:
        images = sorted((folder / "images").iterdir())
        return [scored.reward for scored in client.score([reward_item(path, question, RESPONSE) for path in images])]


def test_rows_of_verl_are_rewarded(url: str, tmp_path: Path) -> None:
    rows = rows_of("verl", tmp_path)
    compute = load_by_path("verl_reward.py").compute_score_batch
    told = ([row[key] for row in rows] for key in ("data_source", "extra_info"))
    sources, extra = told
    truths = [row["reward_model"]["ground_truth"] for row in rows]
    found = compute(sources, [RESPONSE, RESPONSE], truths, extra, reduction="sum")
    assert [one["score"] for one in found] == pytest.approx(expected(url, tmp_path), abs=1e-4)


def test_rows_of_easyr1_are_rewarded(url: str, tmp_path: Path) -> None:
    rows = rows_of("easyr1", tmp_path)
    inputs = [{"response": RESPONSE, "ground_truth": row["reference"]} for row in rows]
    found = load_by_path("easyr1_reward.py").compute_score(inputs, reduction="sum")
    assert [one["overall"] for one in found] == pytest.approx(expected(url, tmp_path), abs=1e-4)


def test_rows_of_openrlhf_are_rewarded(url: str, tmp_path: Path) -> None:
    rows = rows_of("openrlhf", tmp_path)
    prompts = [f"USER: {row['prompt']} ASSISTANT:" for row in rows]
    queries = [f"{prompt} {RESPONSE}</s>" for prompt in prompts]
    found = load_by_path("openrlhf_reward.py").reward_func(queries, prompts, [row["reference"] for row in rows])
    assert [float(one) for one in found["rewards"]] == pytest.approx(expected(url, tmp_path), abs=1e-4)


def test_rows_of_skyrl_are_rewarded(url: str, tmp_path: Path) -> None:
    rows = rows_of("skyrl", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    ids = [*tokenizer.encode(RESPONSE, add_special_tokens=False), tokenizer.eos_token_id]
    output = {"response_ids": [ids] * 2, "loss_masks": [[1] * len(ids)] * 2, "stop_reasons": ["stop"] * 2}

    async def rewards() -> list[list[float]]:
        dense = DenseRewards(AsyncRewardClient(url), tokenizer)
        try:
            return await dense.token_rewards({"prompts": [row["prompt"] for row in rows]}, output)
        finally:
            await dense.close()

    assert [sum(one) for one in asyncio.run(rewards())] == pytest.approx(expected(url, tmp_path), abs=1e-4)
    assert {row["env_class"] for row in rows} == {"one_answer"}


@pytest.mark.parametrize("trainer", ["verl", "easyr1"])
def test_every_place_has_its_image(trainer: str, tmp_path: Path) -> None:
    for row in rows_of(trainer, tmp_path):
        text = row["problem"] if trainer == "easyr1" else row["prompt"][0]["content"]
        assert text.count("<image>") == len(row["images"]) == 1
        assert Image.open(io.BytesIO(row["images"][0]["bytes"])).size == (IMAGE_SIZE, IMAGE_SIZE)


def test_openrlhf_finds_its_images_by_path(tmp_path: Path) -> None:
    for row in rows_of("openrlhf", tmp_path):
        [path] = row["images"]
        assert (
            Image.open(io.BytesIO(Path(path).read_bytes())).size == (IMAGE_SIZE, IMAGE_SIZE)
            and row["prompt"].count("<image>") == 1
        )


@pytest.mark.parametrize("trainer", DATA)
def test_a_script_names_columns_that_the_rows_have(trainer: str, tmp_path: Path) -> None:
    text = (ROOT / "examples" / DATA[trainer]).read_text()
    columns = set(rows_of(trainer, tmp_path)[0])
    assert set(COLUMN.findall(text)) <= columns
    assert f"trainer_data.py {trainer} " in text


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_bash_and_names_files_that_are_there(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)
    named = FILE.findall(script.read_text())
    assert named and [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.name in DATA.values()], ids=lambda path: path.name)
def test_a_script_says_what_it_needs(script: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "FGAIF_REWARD_URL"}
    done = subprocess.run(["bash", str(script)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "set it to the root of the reward service" in done.stderr


def test_llama_factory_is_given_the_data_set_that_is_exported(tmp_path: Path) -> None:
    settings = yaml.safe_load((ROOT / "examples" / "llama_factory_dpo.yaml").read_text())
    export_preferences(preference_run(tmp_path), str(tmp_path / "pairs"), style="llama-factory")
    assert settings["dataset"] in json.loads((tmp_path / "pairs" / "dataset_info.json").read_text())
    assert settings["stage"] == "dpo"


def test_ms_swift_is_given_the_file_that_is_exported(tmp_path: Path) -> None:
    export_preferences(preference_run(tmp_path), str(tmp_path / "pairs"), style="ms-swift")
    assert "$PAIRS/train.jsonl" in (ROOT / "examples" / "ms_swift_dpo.sh").read_text()
    assert (tmp_path / "pairs" / "train.jsonl").exists()
