"""The recipes for models of today go through every stage: the very files, with tiny models of the same families."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from support.recipe_run import Finished, run_recipe

STAGES = ("sample", "label", "train_rewards", "serve_rewards", "align", "evaluate", "report")


@dataclass(frozen=True)
class Recipe:
    """A file, and the families of its models."""

    name: str
    policy: str
    verifier: str
    changes: tuple[str, ...] = ()


RECIPES = (
    Recipe("qwen3-vl-2b-24gb", "qwen3_vl", "qwen3_vl", ("ray.logical_gpus=1",)),
    Recipe("qwen2.5-vl-7b-80gb", "qwen2_5_vl", "qwen3_vl", ("ray.logical_gpus=1",)),
    # As many engines as GPUs would be started at the same time on this machine's cores.
    Recipe(
        "qwen2.5-vl-7b-8x80gb",
        "qwen2_5_vl",
        "qwen3_vl",
        ("ray.logical_gpus=8", "sample.engines=2", "label.verifier.engines=2", "rewards.num_workers=2"),
    ),
    Recipe("smolvlm-500m-cpu", "idefics3", "idefics3"),
)


def run(recipe: Recipe, folder: Path) -> Finished:
    models = {"policy.model": recipe.policy, "label.verifier.model": recipe.verifier, "rewards.backbone": recipe.policy}
    return run_recipe(recipe.name, models, folder, recipe.changes)


@pytest.mark.proof
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_goes_through_every_stage(recipe: Recipe, tmp_path: Path) -> None:
    finished = run(recipe, tmp_path)
    assert finished.code == 0, finished.output[-6000:]
    assert [stage for stage in STAGES if f"== {stage}:" not in finished.output] == []
    assert (finished.folder / "report.html").exists()
    assert "align: 1 steps of PPO" in finished.output
