"""The evaluation job on a few scenes, with a real engine, a real adapter and a real Ray Data plan."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from fgaif_ray import storage
from fgaif_ray.config import Config, load_config
from fgaif_ray.errors import UserError
from jobs import evaluate

IMAGES = 6


def configure(repository: Path, folder: Path, *changes: str) -> Config:
    return load_config(
        repository / "configs" / "shapes.yaml",
        [
            f"run.dir={folder}",
            f"policy.model={repository}/fgaif_ray/shapes/checkpoints/policy",
            "data.sample_images=1",
            "data.align_images=1",
            f"data.evaluate_images={IMAGES}",
            "evaluate.max_tokens=12",
            "evaluate.engine.max_num_seqs=16",
            "evaluate.engine.max_model_len=128",
            "evaluate.engine.kv_cache_gib=0.1",
            "evaluate.engine.threads=1",
            *changes,
        ],
    )


def publish_policy(config: Config) -> None:
    """A policy stage with an adapter that changes what the model says."""
    from peft import LoraConfig, get_peft_model

    from fgaif_ray.vlm.backbone import load_backbone

    stage = storage.Stage(config.run.dir, "policy", "adapter-of-the-test")
    stage.begin()
    backbone = load_backbone(config.policy.model)
    torch.manual_seed(0)
    lora = LoraConfig(
        r=16,
        lora_alpha=96,
        target_modules=r".*language_model\..*\.(?:q_proj|v_proj|down_proj)",
        init_lora_weights=False,
        base_model_name_or_path=config.policy.model,
    )
    get_peft_model(backbone.model, lora).save_pretrained(stage.partial)
    stage.publish({})


def test_an_evaluation_without_a_policy_names_the_job_to_run(repository, tmp_path):
    with pytest.raises(UserError, match=r"jobs\.align"):
        evaluate.run(configure(repository, tmp_path))


@pytest.mark.ray
@pytest.mark.vllm
def test_merged_weights_are_measured_against_the_truth_and_a_second_run_asks_nothing(
    ray_cluster, repository, tmp_path, capsys
):
    config = configure(repository, tmp_path, "align.rollout.sync=merged")
    publish_policy(config)

    evaluate.run(config)

    folder = tmp_path / "evaluation"
    rows = list(storage.read_rows(str(folder)))
    described = Counter((row["which"], row["task"]) for row in rows if row["task"] != "pope")
    assert described == {(which, task): IMAGES for which in ("before", "after") for task in ("sampled", "greedy")}
    said = {
        which: sorted(
            (row["image"], row["task"], row["prompt"], row["response"]) for row in rows if row["which"] == which
        )
        for which in ("before", "after")
    }
    assert said["before"] != said["after"]
    metrics = json.loads((folder / "metrics.json").read_text())
    for which in ("before", "after"):
        assert set(metrics[which]["hallucination_rate"]) == {"existence", "attribute", "relation", "overall"}
        assert metrics[which]["greedy"]["responses"] == metrics[which]["responses"] == IMAGES
        assert 0 <= metrics[which]["pope"]["yes_ratio"] <= 1
        assert set(metrics[which]["pope"]["splits"]) == {"random", "popular", "adversarial"}

    capsys.readouterr()
    evaluate.run(config)
    assert "is up to date" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.vllm
def test_an_adapter_is_measured_by_lengths_where_no_truth_is_known(ray_cluster, repository, tmp_path):
    from fgaif_ray.shapes.render import render
    from fgaif_ray.shapes.scenes import draw_scene

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(15):
        render(draw_scene("heldout", index)).save(pictures / f"{index:02d}.png")
    (pictures / "14.png").write_text("no image")
    config = configure(
        repository,
        tmp_path / "run",
        "data.source=folder",
        f"data.path={pictures}",
        "data.evaluate_images=3",
        "align.rollout.sync=adapter",
    )
    publish_policy(config)

    evaluate.run(config)

    rows = list(storage.read_rows(f"{config.run.dir}/evaluation"))
    said = {
        which: sorted((row["image"], row["task"], row["response"]) for row in rows if row["which"] == which)
        for which in ("before", "after")
    }
    assert said["before"] != said["after"]
    metrics = storage.read_json(f"{config.run.dir}/evaluation/metrics.json")
    assert (metrics["images"], metrics["rejected_images"]) == (2, 1)
    assert "not known" in metrics["note"]
    assert metrics["before"]["words_per_response"] > 0
    assert "hallucination_rate" not in metrics["after"]
