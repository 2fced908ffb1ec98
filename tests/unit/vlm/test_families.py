"""The tiny checkpoints of many families: whole, in published layouts, and with eyes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.families import FAMILIES, ask, build, photo, reference_inputs, reference_log_probs
from transformers import AutoModelForImageTextToText, AutoProcessor

from fgaif_ray.vlm.front_end import load_front_end

CHATTING = sorted(name for name, family in FAMILIES.items() if family.template_file)
PUBLISHED_NAMES = {
    "llava": ("language_model.lm_head.weight", "vision_tower.vision_model.embeddings.class_embedding"),
    "llava_interleave": ("language_model.model.norm.weight", "vision_tower.vision_model.post_layernorm.weight"),
    "pixtral": ("language_model.lm_head.weight", "vision_tower.patch_conv.weight"),
    "llava_next": ("language_model.model.norm.weight", "image_newline"),
    "granite_vision": ("language_model.model.norm.weight", "vision_tower.vision_model.post_layernorm.weight"),
    "llava_onevision": ("language_model.model.norm.weight", "image_newline"),
    "qwen2_vl": ("model.norm.weight", "visual.patch_embed.proj.weight"),
    "qwen2_5_vl": ("model.norm.weight", "visual.merger.ln_q.weight"),
    "qwen3_vl": ("model.language_model.norm.weight", "model.visual.pos_embed.weight"),
    "internvl": ("language_model.model.norm.weight", "vision_tower.embeddings.cls_token"),
    "idefics3": ("lm_head.weight", "model.connector.modality_projection.proj.weight"),
    "smolvlm": ("lm_head.weight", "model.text_model.norm.weight"),
    "gemma3": ("language_model.model.norm.weight", "multi_modal_projector.mm_input_projection_weight"),
    "paligemma": ("language_model.model.norm.weight", "vision_tower.vision_model.post_layernorm.weight"),
    "mistral3": ("language_model.lm_head.weight", "multi_modal_projector.patch_merger.merging_layer.weight"),
    "cohere2_vision": ("model.language_model.norm.weight", "model.vision_tower.vision_model.post_layernorm.weight"),
    "qwen3_5": ("model.language_model.layers.0.linear_attn.A_log", "model.visual.pos_embed.weight"),
    "glm4v": ("lm_head.weight", "model.visual.post_conv_layernorm.weight"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("families")
    return {name: build(name, parent / name) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_loads_every_weight(name: str, folders: dict[str, Path]) -> None:
    _, loaded = AutoModelForImageTextToText.from_pretrained(folders[name], output_loading_info=True)
    assert {kind: found for kind, found in loaded.items() if found} == {}


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_have_published_names(name: str, folders: dict[str, Path]) -> None:
    with safe_open(folders[name] / "model.safetensors", framework="pt") as file:
        assert set(PUBLISHED_NAMES[name]) - set(file.keys()) == set()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_files_say_what_the_family_says(name: str, folders: dict[str, Path]) -> None:
    family = FAMILIES[name]
    processor = AutoProcessor.from_pretrained(folders[name])
    ends = json.loads((folders[name] / "generation_config.json").read_text())["eos_token_id"]
    assert json.loads((folders[name] / "config.json").read_text())["model_type"] == family.model_type
    assert processor.tokenizer.convert_ids_to_tokens(ends if isinstance(ends, list) else [ends]) == [*family.eos_tokens]
    assert (processor.chat_template is None) == (family.template_file is None)
    assert all(len(processor.tokenizer(word, add_special_tokens=False)["input_ids"]) == 1 for word in ("yes", "no"))


@pytest.mark.parametrize("name", CHATTING)
def test_the_processor_survives_being_written(name: str, folders: dict[str, Path]) -> None:
    drafted = FAMILIES[name].draft().processor
    messages = ask("What is this?")
    messages[0]["content"][0]["image"] = photo(150, 70)
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    before = drafted.apply_chat_template(messages, **options)
    after = reference_inputs(folders[name], ask("What is this?"), [photo(150, 70)])
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", CHATTING)
def test_another_image_changes_the_log_probabilities(name: str, folders: dict[str, Path]) -> None:
    response = [300, 301, 302, 303]
    seen, other = (
        reference_log_probs(folders[name], ask("What is this?"), [photo(120, 80, seed)], response) for seed in (1, 2)
    )
    assert float((seen - other).abs().max()) > 0.05


def test_a_banned_token_cannot_be_sampled(folders: dict[str, Path]) -> None:
    args = (folders["llava"], ask("What is this?"), [photo(60, 60)])
    free = reference_log_probs(*args, [300, 301])
    banned = reference_log_probs(*args, [300, 301], banned=[301])
    assert banned[0] > free[0]
    assert banned[1] == float("-inf")


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    written = [
        build("llava", tmp_path / str(place), seed).joinpath("model.safetensors")
        for place, seed in enumerate((0, 0, 1))
    ]
    same, again, different = (path.read_bytes() for path in written)
    assert same == again != different


def test_building_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    build("llava", tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_photo_is_drawn_again() -> None:
    assert photo(50, 30, seed=3).tobytes() == photo(50, 30, seed=3).tobytes() != photo(50, 30, seed=4).tobytes()
    assert photo(50, 30).size == (50, 30)


@pytest.mark.parametrize("name", CHATTING)
def test_a_prompt_without_an_image_is_text_alone(name: str, folders: dict[str, Path]) -> None:
    front_end = load_front_end(str(folders[name]))
    encoded = front_end.encode_prompt("What is this?", [])
    assert (encoded.input_ids, encoded.image_tokens) == (front_end.prompt_ids("What is this?", 0), 0)
