"""Learning from preferences end to end: real Ray Train on the embedded world's policy, with one worker and with two."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support.preference_data import preference_run
from support.reward_helpers import CHECKPOINT

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.images import load_image
from fgaif_ray.rl.run_log import read_lines
from fgaif_ray.vlm.backbone import load_backbone
from jobs import align

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SETTINGS = (
    "align.algorithm=c-dpo",
    "align.steps=3",
    "align.lora.rank=4",
    "align.lora.alpha=8",
    "align.checkpoint_every=1",
    "align.cpus_per_worker=0.5",
    "align.threads=1",
    "align.dpo.pairs_per_step=6",
    "align.dpo.micro_batch_size=2",
    "align.dpo.learning_rate=0.001",
)


@pytest.fixture(scope="module")
def aligned(ray_cluster: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Config]:
    """A finished run by the number of its workers."""
    runs = {}
    for workers in (1, 2):
        folder = tmp_path_factory.mktemp(f"workers-{workers}")
        runs[workers] = preference_run(folder, *SETTINGS, f"align.num_workers={workers}")
        align.run(runs[workers])
    return runs


def policy(config: Config) -> Path:
    return Path(config.run.dir, "policy")


def test_a_run_leaves_what_it_promises(aligned: dict[int, Config]) -> None:
    folder = policy(aligned[2])
    assert {path.name for path in folder.iterdir()} == {
        "_manifest.json", "adapter_config.json", "adapter_model.safetensors", "README.md", "metrics.jsonl",
        "tensorboard",
    }  # fmt: skip
    rows = read_lines(str(folder / "metrics.jsonl"))
    assert [(row["step"], row["count/pairs"]) for row in rows] == [(1, 6), (2, 6), (3, 6)]
    assert rows[-1]["dpo/loss"] < rows[0]["dpo/loss"] and rows[-1]["dpo/told_apart"] == 1
    card = (folder / "README.md").read_text()
    assert "C-DPO on preferences" in card and '"beta": 0.1' in card and '"kl"' not in card
    manifest = storage.read_manifest(aligned[2].run.dir, "policy")
    assert manifest is not None and manifest["steps"] == 3


def test_workers_share_a_batch_and_make_the_same_policy(aligned: dict[int, Config]) -> None:
    one, two = (read_lines(str(policy(aligned[workers]) / "metrics.jsonl")) for workers in (1, 2))
    for name in ("dpo/loss", "dpo/margin", "dpo/told_apart", "update/policy_gradient_norm", "count/tokens"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-2), name


def test_the_published_adapter_prefers_what_was_better(aligned: dict[int, Config]) -> None:
    base = load_backbone(CHECKPOINT, "float32")
    config = aligned[1]
    picture = load_image(str(Path(config.run.dir).parent / "0.png"))
    prompt = base.front_end.encode_prompt("Describe this image.", [picture])
    context = base.front_end.tokenizer("There is a red circle.", add_special_tokens=False)["input_ids"]
    sides = [
        base.front_end.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (" A blue square is visible.", " There is a green star.")
    ]

    def margin() -> float:
        scores = []
        for ids in sides:
            whole = torch.tensor([[*prompt.input_ids, *context, *ids]])
            with torch.no_grad():
                logits = model(input_ids=whole, **prompt.image_inputs).logits[0].log_softmax(-1)
            places = range(len(whole[0]) - len(ids) - 1, len(whole[0]) - 1)
            scores.append(sum(float(logits[place, whole[0, place + 1]]) for place in places))
        return scores[0] - scores[1]

    model: Any = base.model
    before = margin()
    model = PeftModel.from_pretrained(base.model, str(policy(config)))
    assert margin() > before + 0.1
    assert load_file(policy(config) / "adapter_model.safetensors")


def test_a_finished_run_is_not_run_again(aligned: dict[int, Config], capsys: pytest.CaptureFixture[str]) -> None:
    align.run(aligned[1])
    assert "up to date" in capsys.readouterr().out
