"""The published LLaVA-1.5 architecture, with little in it, through the code that trains the real one."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from support.official_llava import SMALL, config_7b, config_13b, small
from transformers import LlavaConfig, LlavaForConditionalGeneration

from benchmarks.gpu_model import Shape, build_backbone
from fgaif_ray.config import LoRAOptions
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.encoding import ScoringItem
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.vlm.backbone import Backbone, load_backbone
from fgaif_ray.vlm.merging import merged_weights

PROMPT = "w3 w4 w5"
LORA = LoRAOptions(rank=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the architecture with random weights and a processor of the same sizes."""
    folder = tmp_path_factory.mktemp("llava")
    config = LlavaConfig.from_dict(small(config_7b()))
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).half().save_pretrained(folder)
    text, vision = SMALL["text_config"], SMALL["vision_config"]
    shape = Shape(
        image_size=336,
        vision_hidden=vision["hidden_size"],
        vision_intermediate=vision["intermediate_size"],
        vision_layers=vision["num_hidden_layers"],
        vision_heads=vision["num_attention_heads"],
        hidden=text["hidden_size"],
        intermediate=text["intermediate_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        vocabulary=32064,
    )
    build_backbone(shape, torch.device("meta"), torch.float32, 0).front_end.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def backbone(folder: Path) -> Backbone:
    return load_backbone(str(folder), "float32")


def test_the_sizes_that_code_depends_on_are_the_published_ones(backbone: Backbone) -> None:
    photograph = Image.new("RGB", (640, 480))
    front_end = backbone.front_end
    encoded = front_end.encode_prompt("Describe it.", [photograph])
    assert encoded.image_tokens == 576 == len(encoded) - len(front_end.prompt_ids("Describe it.")) + 1
    assert encoded.image_inputs["pixel_values"].shape == (1, 3, 336, 336)
    assert (backbone.eos_token_id, backbone.max_length) == (2, 4096)
    assert backbone.model.get_output_embeddings().weight.shape[0] == 32064


def test_small_and_large_have_the_same_layers() -> None:
    def kinds(config: LlavaConfig) -> set[str]:
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(config)
        return {
            ".".join(part for part in name.split(".") if not part.isdigit()) for name, _ in model.named_parameters()
        }

    tiny = kinds(LlavaConfig.from_dict(small(config_7b())))
    assert tiny == kinds(LlavaConfig.from_dict(config_7b())) == kinds(LlavaConfig.from_dict(config_13b()))


def test_policy_critic_and_reference_learn_on_it(backbone: Backbone) -> None:
    model = PolicyModel(backbone, LORA, activation_checkpointing=True)
    images = [Image.new("RGB", (640, 480), (200, 30, 30)), Image.new("RGB", (300, 500), (30, 30, 200))]
    rows = model.encode([PROMPT] * 2, images, [[10, 11, 2], [12, 2]])
    assert [one.planes.shape for one in rows.features] == [(1, 576, 64)] * 2
    before, reference = model.log_probs(rows).log_probs, model.log_probs(rows, "reference").log_probs
    torch.testing.assert_close(before, reference)  # an untrained adapter changes nothing
    (-before.sum()).backward()
    (model.values(rows) - 1).pow(2).sum().backward()
    with torch.no_grad():
        for parameter in (model.policy_parameters() | model.critic_parameters()).values():
            assert parameter.grad is not None
            parameter.sub_(0.1 * parameter.grad)
    assert model.log_probs(rows).log_probs.sum() > before.sum()


def test_a_trained_adapter_merges_into_every_linear_layer(folder: Path, backbone: Backbone, tmp_path: Path) -> None:
    model = PolicyModel(backbone, LORA)
    with torch.no_grad():
        for parameter in model.policy_parameters().values():
            parameter.add_(0.1)
    model.save_policy(tmp_path)
    with safe_open(folder / "model.safetensors", "pt") as file:
        changed = [
            name
            for name, value in merged_weights(str(folder), str(tmp_path))
            if not torch.equal(value, file.get_tensor(name))
        ]
    assert len(changed) == 7 * SMALL["text_config"]["num_hidden_layers"]
    assert {json.loads((tmp_path / "adapter_config.json").read_text())["r"]} == {4}


def test_three_reward_models_score_on_it(backbone: Backbone) -> None:
    model = RewardModel(backbone)
    for seed, fact_type in enumerate(FACT_TYPES):
        model.add(fact_type, LORA, seed)
    item = ScoringItem([Image.new("RGB", (640, 480), (90, 90, 90))], PROMPT, ["w6 w7 w8,", "w9 w10."])
    scores = model.score_types(FACT_TYPES, [item])
    assert {found.shape for [found] in scores.values()} == {(2, 3)}
