"""The evaluation job on a few scenes, with a real engine, a real adapter and a real Ray Data plan."""

import json
from collections import Counter

import pytest
from support.evaluation_runs import IMAGES, configure, publish_policy

from fgaif_ray import storage
from jobs import evaluate


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
