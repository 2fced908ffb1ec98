"""Benchmarks answered by a real engine."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.benchmark_files import write_amber, write_hallusionbench, write_pope
from support.benchmark_runs import result
from support.evaluation_runs import configure, publish_policy

from actors.evaluation.benchmarks import run_benchmarks


@pytest.mark.ray
@pytest.mark.vllm
def test_both_policies_answer_pope_and_amber_with_one_engine(
    ray_cluster: dict[str, Any], repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fgaif_ray.shapes.render import render
    from fgaif_ray.shapes.scenes import draw_scene

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, name in enumerate(("a.png", "b.png", "AMBER_1.jpg")):
        render(draw_scene("heldout", index)).save(pictures / name)
    config = configure(
        repository,
        tmp_path / "run",
        "align.rollout.sync=merged",
        f"evaluate.benchmarks.pope={{path: {write_pope(tmp_path / 'pope')}, images: {pictures}, max_tokens: 4}}",
        f"evaluate.benchmarks.amber={{path: {write_amber(tmp_path / 'amber')}, images: {pictures}, max_tokens: 12}}",
    )
    publish_policy(config)
    run_benchmarks(config, "pope,amber", dry_run=True)
    assert "POPE: 8 of 8 answers" in capsys.readouterr().out  # the yes question is in every split, asked once

    run_benchmarks(config, "pope,amber")

    said = [
        json.loads(line) for line in Path(config.run.dir, "benchmarks/amber/answers.jsonl").read_text().splitlines()
    ]
    assert [(row["model"], row["id"]) for row in said] == [
        (which, str(n)) for which in ("before", "after") for n in range(1, 8)
    ]
    assert said[0]["answer"] != said[7]["answer"]
    assert set(result(config, "pope")["models"]) == {"before", "after"}
    assert result(config, "amber")["models"]["before"]["counts"]["cut_off"] >= 0

    own = result(config, "pope")
    run_benchmarks(config, "pope", [f"{config.run.dir}/benchmarks/pope/answers.jsonl"])
    again = result(config, "pope")
    assert [again["models"][which]["figures"] for which in ("before", "after")] == [
        own["models"][which]["figures"] for which in ("before", "after")
    ]
    assert again["comparisons"] == own["comparisons"]


@pytest.mark.ray
@pytest.mark.vllm
def test_questions_without_an_image_are_asked_as_text(
    ray_cluster: dict[str, Any], repository: Path, tmp_path: Path
) -> None:
    from fgaif_ray.shapes.render import render
    from fgaif_ray.shapes.scenes import draw_scene

    for index, name in enumerate(("VD/chart/0_0.png", "VD/chart/0_1.png", "VS/chart/0_1.png")):
        (tmp_path / "figures" / name).parent.mkdir(parents=True, exist_ok=True)
        render(draw_scene("heldout", index)).save(tmp_path / "figures" / name)
    files = write_hallusionbench(tmp_path / "hallusion")
    settings = f"path: {files}, images: {tmp_path / 'figures'}, reading: words, max_tokens: 4"
    config = configure(
        repository,
        tmp_path / "run",
        "align.rollout.sync=merged",
        f"evaluate.benchmarks.hallusionbench={{{settings}}}",
    )
    publish_policy(config)
    run_benchmarks(config, "hallusionbench")

    rows = Path(config.run.dir, "benchmarks/hallusionbench/answers.jsonl").read_text().splitlines()
    said = {(row["model"], row["id"]): row for row in map(json.loads, rows)}
    assert len(said) == 12
    assert said["before", "VS_chart_0_0_0"]["image"] == ""
    assert result(config, "hallusionbench")["models"]["before"]["counts"]["unanswered"] == 0
