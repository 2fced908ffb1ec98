"""A node that is lost while responses are read: no row comes out twice or is missing."""

import json
from pathlib import Path

import pytest
from support.local_nodes import LocalNodes, NodeJob
from support.lost_nodes import PARTS_BEFORE, check_said, lose_while, parts
from support.reward_helpers import PROMPT
from support.sampling_runs import make_config

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import draw_scene


def rows_config(folder: Path, rows: int, images: int) -> Config:
    """A run over responses that come with the data."""
    (folder / "images").mkdir()
    for index in range(images):
        render(draw_scene("train", index)).resize((600, 600)).save(folder / "images" / f"{index:03d}.png")
    asked = [
        {"image": f"{index % images:03d}.png", "prompt": PROMPT, "response": f"Answer {index}."}
        for index in range(rows)
    ]
    (folder / "images" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    config = make_config(folder / "images" / "rows.jsonl", folder / "run")
    data = config.data.model_copy(
        update={"source": "rows", "sample_images": images - 2, "align_images": 1, "evaluate_images": 1}
    )
    return config.model_copy(update={"data": data})


@pytest.mark.proof
@pytest.mark.ray
def test_a_lost_node_costs_no_given_response(nodes: LocalNodes, tmp_path: Path) -> None:
    config = rows_config(tmp_path, rows=2400, images=12)
    node = nodes.add("data", 1)
    with NodeJob("sample", config, nodes.address, tmp_path) as job:
        partial = storage.join(config.run.dir, "responses.partial")
        lose_while(nodes, job, "data", 1, node, lambda: parts(partial) >= PARTS_BEFORE)
        check_said(job.finish())
    told = [row["response"] for row in storage.read_rows(storage.join(config.run.dir, "responses"))]
    assert len(told) == len(set(told)) == 2000
