"""The benchmark of the reward service: both sides get the same responses, and the models of a kind can be scored."""

import base64
from pathlib import Path

import pytest

from benchmarks import PAPER_SETUP
from benchmarks.rewards import in_process, make_load, make_models
from fgaif_ray.config import Config, change_config, load_config
from fgaif_ray.images import decode_image
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.model_files import load_reward_model
from fgaif_ray.vlm.backbone import load_backbone

BACKBONE = "fgaif_ray/shapes/checkpoints/policy"


@pytest.fixture(scope="module")
def config(repository: Path) -> Config:
    return load_config(repository / "configs/shapes.yaml", [*PAPER_SETUP, f"rewards.backbone={repository}/{BACKBONE}"])


def test_the_service_and_the_bare_models_get_the_same_responses() -> None:
    load = make_load(8)
    for request, item in zip(load.requests, load.items, strict=True):
        assert request.response == "".join(item.segments)
        assert request.prompt == item.prompt
        shown = decode_image(base64.b64decode(request.image.rpartition(",")[2]))
        assert [shown.tobytes()] == [image.tobytes() for image in item.images]


@pytest.mark.parametrize("kind", ["separate", "multitask"])
def test_models_of_a_kind_can_be_written_and_scored(config: Config, tmp_path: Path, kind: str) -> None:
    changed = change_config(config, [f"rewards.kind={kind}"])
    folders = make_models(changed, tmp_path)
    assert folders.keys() == set(FACT_TYPES)
    model = load_reward_model(load_backbone(changed.rewards.backbone, changed.rewards.dtype), folders)
    per_second, p99_s = in_process(model, make_load(9).items, rounds=1)
    assert per_second > 0
    assert p99_s > 0


def test_models_are_written_for_the_types_of_the_configuration(config: Config, tmp_path: Path) -> None:
    changed = change_config(config, ["run.fact_types=[existence, novelty]"])
    assert make_models(changed, tmp_path).keys() == {"existence", "novelty"}
