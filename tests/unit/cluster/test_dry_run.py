"""Dry runs of models without content: against published sizes, and against passes that really compute."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from support.families import build
from support.official_llava import config_7b, config_13b, write_config
from support.paths import ROOT
from transformers import (
    AutoModelForImageTextToText,
    InternVLConfig,
    LlamaConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen3VLConfig,
    SmolVLMConfig,
)

from fgaif_ray.cluster.actor_memory import policy_model, policy_pass, run_of
from fgaif_ray.cluster.allocations import Allocations
from fgaif_ray.cluster.dry_run import (
    LARGEST_SHAPE,
    UncountableModelError,
    dry_run,
    meta_rows,
    planned_picture,
    tensor_bytes,
)
from fgaif_ray.config import LoRAOptions
from fgaif_ray.pixel_budget import PixelBudget
from fgaif_ray.rl.policy import EncodedRows, PolicyModel
from fgaif_ray.vlm.backbone import IMAGES_PER_PASS, PIXELS_PER_PASS, load_backbone
from fgaif_ray.vlm.front_end import load_front_end
from fgaif_ray.vlm.inputs import image_batches
from fgaif_ray.vlm.lora import with_own_layers

CHECKPOINTS = ROOT / "fgaif_ray/shapes/checkpoints"
POLICY = str(CHECKPOINTS / "policy")
LORA = LoRAOptions(rank=8)
Role = Literal["policy", "critic"]
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
}
TOWER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
}
PATCHES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "depth": 2, "num_heads": 4, "patch_size": 14}
FAMILIES = {
    "qwen2_5_vl": Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        vision_config={**PATCHES, "out_hidden_size": 64, "window_size": 56, "fullatt_block_indexes": [1]},
    ),
    "qwen3_vl": Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 16, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        vision_config={**PATCHES, "out_hidden_size": 64, "deepstack_visual_indexes": [0]},
    ),
    "internvl": InternVLConfig(
        text_config=Qwen2Config(**TEXT), vision_config=TOWER | {"image_size": [56, 56], "patch_size": [14, 14]}
    ),
    "smolvlm": SmolVLMConfig(
        text_config=LlamaConfig(**TEXT), vision_config=TOWER, scale_factor=2, pad_token_id=0, image_token_id=499
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def test_llava_1_5_7b_has_its_published_size(folder: Path) -> None:
    run = dry_run(write_config(folder / "7b", config_7b()), "auto")
    assert run.parameters == 7_063_427_072
    assert run.cache_bytes_per_token() == 2 * 32 * 32 * 128 * 2 == 524_288
    assert (run.image_tokens, run.positions, run.dtype) == (576, 4096, "float16")


def test_llava_1_5_13b_has_its_published_size(folder: Path) -> None:
    run = dry_run(write_config(folder / "13b", config_13b()), "bfloat16")
    assert run.parameters == 13_351_494_656
    assert run.cache_bytes_per_token() == 2 * 40 * 40 * 128 * 2 == 819_200


def test_adapters_of_the_7b_model_are_counted_by_hand(folder: Path) -> None:
    name = write_config(folder / "7b", config_7b())
    run = dry_run(name, "bfloat16")
    every, one = (policy_model(run, lora) for lora in (LoRAOptions(rank=64), LoRAOptions(target_modules=("q_proj",))))
    each_layer = 4 * 64 * (4096 + 4096) + 3 * 64 * (4096 + 11008)
    assert tensor_bytes(every.policy_parameters().values()) == 4 * 32 * each_layer == 4 * 159_907_840
    assert tensor_bytes(one.policy_parameters().values()) == 4 * 32 * 64 * (4096 + 4096)
    assert run.slot_bytes(64) == 2 * 159_907_840


def test_four_bits_pack_the_linear_layers_of_the_decoder_alone(folder: Path) -> None:
    run = dry_run(write_config(folder / "7b", config_7b()), "bfloat16")
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    saved = run.weight_bytes() - run.weight_bytes("4bit")
    assert saved == pytest.approx(linear * (2 - 0.5 - 1 / 64 - 1 / 4096), abs=2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["policy", "annotator"])
def test_counted_weights_are_those_of_the_loaded_model(name: str, dtype: str) -> None:
    model = load_backbone(str(CHECKPOINTS / name), dtype).model
    held = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    assert dry_run(str(CHECKPOINTS / name), dtype).weight_bytes() == held


def test_grouped_queries_make_a_smaller_cache(tmp_path: Path) -> None:
    config = config_7b()
    config["text_config"] |= {"num_key_value_heads": 8, "num_hidden_layers": 2}
    run = dry_run(write_config(tmp_path, config), "float16")
    assert run.cache_bytes_per_token() == 2 * 2 * 8 * 128 * 2


def test_a_model_without_images_is_counted(tmp_path: Path) -> None:
    text = config_7b()["text_config"] | {"num_hidden_layers": 1}
    run = dry_run(write_config(tmp_path, text), "auto")
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096
    assert run.parameters == 2 * 32064 * 4096 + layer + 4096
    assert (run.image_tokens, run.image_pass(3).peak) == (0, 0)


def test_an_engine_halves_float32_where_it_may_choose() -> None:
    found = [dry_run(POLICY, dtype, engine=engine).dtype for dtype in ("auto", "float32") for engine in (False, True)]
    assert found == ["float32", "bfloat16", "float32", "float32"]


def test_a_model_that_is_not_here_says_what_makes_it_countable() -> None:
    with pytest.raises(UncountableModelError, match=r"^org/name is not on this machine; `hf download org/name config"):
        dry_run("org/name", "auto")


@pytest.mark.parametrize("kind", ["no-such-model", "clip"])
def test_what_cannot_be_built_is_a_phrase(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UncountableModelError) as error:
        dry_run(str(tmp_path), "auto")
    assert "\n" not in str(error.value) and str(error.value).startswith(str(tmp_path))


def test_an_adapter_on_layers_that_are_not_there_is_a_phrase() -> None:
    with pytest.raises(UncountableModelError, match="cannot be built"):
        policy_model(dry_run(POLICY, "auto"), LoRAOptions(target_modules=("nowhere",)))


def test_nothing_is_built_in_memory(folder: Path) -> None:
    before = torch.tensor(0).device
    run = dry_run(write_config(folder / "7b", config_7b()), "float32")
    assert torch.tensor(0).device == before  # the meta device was left again
    assert {tensor.device.type for tensor in run.model.parameters()} == {"meta"}


def policy_rows(model: PolicyModel, rows: int, response: int) -> EncodedRows:
    images = [Image.new("RGB", (60, 60), (10 * index, 90, 120)) for index in range(rows)]
    return model.encode(["What is shown?"] * rows, images, [[70] * response] * rows)


@pytest.fixture(params=[False, True], ids=["whole", "checkpointed"])
def policy(request: pytest.FixtureRequest) -> PolicyModel:
    return PolicyModel(load_backbone(POLICY, "float32"), LORA, activation_checkpointing=request.param)


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_an_update_keeps_and_allocates_what_was_counted(policy: PolicyModel, role: Role) -> None:
    rows = policy_rows(policy, 2, 40)
    parameters = policy.policy_parameters() | policy.critic_parameters()
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    own = [*policy.parameters(), *policy.buffers(), *(one.grad for one in parameters.values())]
    own += [one.planes for one in rows.features]
    with Allocations(own) as made:
        result = policy.values(rows) if role == "critic" else policy.log_probs(rows).log_probs
        result.sum().backward()
    checkpointing = bool(policy.backbone.model.get_decoder().is_gradient_checkpointing)
    model = policy_model(dry_run(POLICY, "float32"), LORA, checkpointing=checkpointing)
    counted = policy_pass(model, role, 2, rows.input_ids.shape[1], 40)
    assert made.kept == pytest.approx(counted.kept, abs=1024)  # masks and places of the 80 response tokens
    assert made.peak == pytest.approx(counted.peak, rel=0.02)


def test_more_rows_keep_more_and_checkpoints_less() -> None:
    run = dry_run(POLICY, "float32")
    model = policy_model(run, LORA)
    one, two, three = (policy_pass(model, "critic", rows, 200, 100) for rows in (1, 2, 3))
    assert two.kept - one.kept == three.kept - two.kept > 0
    checkpointed = policy_pass(policy_model(run, LORA, checkpointing=True), "critic", 3, 200, 100)
    assert checkpointed.kept < three.kept / 4 and checkpointed.peak < three.peak
    assert policy_pass(model, "critic", 3, 200, 100, training=False).peak < checkpointed.peak
    assert policy_pass.__wrapped__(model, "critic", 3, 200, 100) == three


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_counted_without_code_of_their_own(name: str, folder: Path) -> None:
    FAMILIES[name].save_pretrained(folder / name)
    without_content = policy_model(dry_run(str(folder / name), "float32"), LORA)
    model = AutoModelForImageTextToText.from_config(FAMILIES[name]).eval().requires_grad_(False)
    inside = next(path for path, module in model.named_modules() if module is model.get_decoder())
    targets = rf"{inside}\..*\.(?:{'|'.join(LORA.target_modules)})"
    get_peft_model(model, with_own_layers(LoraConfig(r=8, target_modules=targets)))
    ids, places = torch.zeros(2, 50, dtype=torch.int64), (torch.tensor([0, 1]), torch.tensor([49, 30]))
    with Allocations([*model.parameters(), *model.buffers()]) as made:
        embeddings = model.get_input_embeddings()(ids)
        states = model.get_decoder()(inputs_embeds=embeddings, use_cache=False).last_hidden_state[places]
    assert states.requires_grad
    with run_of(without_content).counted(without_content) as counted:
        kept = run_of(without_content).states(meta_rows(2, 50), ())[places]
    assert kept.requires_grad and made.kept == counted.kept > 0


@pytest.mark.parametrize(
    ("name", "tokens", "planes"),
    [("qwen2_5_vl", 23 * 17, 1), ("qwen3_vl", 23 * 17, 2), ("internvl", 4, 1), ("smolvlm", None, 1)],
)
def test_images_take_the_tokens_that_the_tower_makes_of_them(
    name: str, tokens: int | None, planes: int, folder: Path
) -> None:
    FAMILIES[name].save_pretrained(folder / name)
    run = dry_run(str(folder / name), "float32")
    assert run.image_tokens == tokens  # SmolVLM's tiles are its processor's to cut
    assert run.image_pass(2).kept == 2 * planes * (tokens or 0) * 64 * 4  # Qwen3-VL has features for a layer more


def test_an_image_of_the_pixel_budget_is_planned(folder: Path) -> None:
    FAMILIES["qwen2_5_vl"].save_pretrained(folder / "budget")
    few, many = (
        dry_run(str(folder / "budget"), "float32", budget=PixelBudget(max=most)) for most in (28**2, 1_003_520)
    )
    assert (few.image_tokens, many.image_tokens) == (1, 41 * 31)  # 1156 x 867 pixels
    assert few.image_pass(1).peak < many.image_pass(1).peak / 100


def test_a_budget_without_an_upper_limit_leaves_a_photo_and_enlarges_it() -> None:
    assert planned_picture(PixelBudget(min=1000)) == (640, 480)
    assert planned_picture(PixelBudget(min=4 * 640 * 480)) == (1280, 960)
    assert planned_picture(PixelBudget(max=100 * 10**6)) == LARGEST_SHAPE


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl", "smolvlm", "gemma3"])
def family(request: pytest.FixtureRequest, folder: Path) -> str:
    return str(build(request.param, folder / f"tiny-{request.param}"))


def test_the_features_of_a_family_are_counted_as_they_come(family: str) -> None:
    backbone = load_backbone(family, "float32")
    picture = Image.new("RGB", planned_picture(PixelBudget(max=4000)))
    prompts = [backbone.front_end.encode_prompt("What is shown?", [picture])] * 3
    run = dry_run(family, "float32", budget=PixelBudget(max=4000))
    assert run.image_tokens is not None and 0 <= run.image_tokens - prompts[0].image_tokens <= 30  # marks of rows
    assert run.image_pass(3).kept == sum(one.planes.nbytes for one in backbone.image_features(prompts))
    pairs = [backbone.front_end.encode_prompt("What differs?", [picture, picture])] * 3
    assert run.image_pass(3, 2).kept == sum(one.planes.nbytes for one in backbone.image_features(pairs))


def test_as_many_images_are_in_a_pass_as_the_backbone_takes(folder: Path) -> None:
    path = str(build("qwen2_5_vl", folder / "tiny-qwen2_5_vl"))
    front_end = load_front_end(path)
    run = dry_run(path, "float32")
    for images in (1, 40):
        encoded = front_end.encode_prompt("What is shown?", [Image.new("RGB", (640, 480))] * images)
        together = len(image_batches([encoded] * 100, IMAGES_PER_PASS, PIXELS_PER_PASS)[0])
        assert run.prompts_per_pass(images) == together
        assert (together < IMAGES_PER_PASS) == (images > 1)
    FAMILIES["qwen2_5_vl"].save_pretrained(folder / "untold")
    large = dry_run(str(folder / "untold"), "float32")
    most = large.prompts_per_pass()
    assert most == PIXELS_PER_PASS // (4 * 23 * 17 * 3 * 2 * 14 * 14) < IMAGES_PER_PASS
    one, ten, twice = (large.image_pass(prompts) for prompts in (1, most, 2 * most))
    assert twice.peak - ten.peak == ten.kept == most * one.kept


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_an_update_of_a_family_keeps_what_was_counted(family: str, role: Role) -> None:
    model = PolicyModel(load_backbone(family, "float32"), LORA)
    rows = policy_rows(model, 2, 40)
    own = [*model.parameters(), *model.buffers(), *(one.planes for one in rows.features)]
    with Allocations(own) as made:
        result = model.values(rows) if role == "critic" else model.log_probs(rows).log_probs
    assert result.requires_grad
    counted = policy_pass(policy_model(dry_run(family, "float32"), LORA), role, 2, rows.input_ids.shape[1], 40)
    assert made.kept == pytest.approx(counted.kept, rel=0.06)  # masks and places of tokens


def test_a_processor_says_how_many_tokens_an_image_takes() -> None:
    front_end = load_front_end(POLICY)
    encoded = front_end.encode_prompt("Describe it.", [Image.new("RGB", (640, 480))])
    assert dry_run(POLICY, "auto").image_tokens == encoded.image_tokens
