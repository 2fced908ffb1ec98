"""Shipped configurations go through every stage: the very files, with tiny models of the same families.

Two of those for GPUs do so in every run of the tests (`tests/integration/cluster/test_recipes_on_nodes.py`).
"""

from pathlib import Path

import pytest
from support.recipe_run import Recipe, run_recipe

RECIPES = (
    Recipe("qwen2.5-vl-7b-80gb", "qwen2_5_vl", "qwen3_vl", ("ray.logical_gpus=1",)),
    Recipe("llava-1.5-7b", "llava", "llava", ("ray.logical_gpus=8",)),
    Recipe("paper", "llava", "llava", ("ray.logical_gpus=4",)),
    Recipe("smolvlm-500m-cpu", "idefics3", "idefics3"),
)


@pytest.mark.proof
@pytest.mark.ray
@pytest.mark.vllm
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_goes_through_every_stage(recipe: Recipe, tmp_path: Path) -> None:
    run_recipe(recipe, tmp_path).check()
