import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.paths import ROOT
from transformers import LlamaConfig, LlamaForCausalLM

from fgaif_ray.errors import UserError
from fgaif_ray.vlm.backbone import Backbone, banned_token_ids, load_backbone

CHECKPOINT = str(ROOT / "fgaif_ray/shapes/checkpoints/policy")
PROMPT = "Describe this image in detail."


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(CHECKPOINT)


@pytest.fixture
def image() -> Image.Image:
    picture = Image.new("RGB", (60, 60), (240, 240, 240))
    picture.paste((200, 30, 30), (5, 5, 25, 30))
    return picture


def test_the_backbone_is_frozen_and_in_eval_mode(backbone: Backbone) -> None:
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_no_progress_bar_or_warning_reaches_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    load_backbone(CHECKPOINT)
    assert capfd.readouterr().err == ""


def test_prompt_ids_hold_the_image_once_and_begin_with_one_bos(backbone: Backbone) -> None:
    ids = backbone.prompt_ids(PROMPT)
    assert ids.count(backbone.image_token_id) == 1
    assert [index for index, token in enumerate(ids) if token == backbone.tokenizer.bos_token_id] == [0]


def test_special_tokens_are_added_where_the_template_has_no_bos(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    tokenizer = backbone.tokenizer

    def tokenise(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        calls.append(add_special_tokens)
        return {"input_ids": tokenizer(text, add_special_tokens=False)["input_ids"]}

    tokenise.bos_token = "<other>"  # type: ignore[attr-defined]
    tokenise.convert_ids_to_tokens = tokenizer.convert_ids_to_tokens  # type: ignore[attr-defined]
    other = Backbone(CHECKPOINT, backbone.model, backbone.processor, tokenise, backbone.image_token_id)
    other.prompt_ids(PROMPT)
    backbone.prompt_ids(PROMPT)
    assert calls == [True]


def test_expanded_ids_equal_what_the_processor_makes(backbone: Backbone, image: Image.Image) -> None:
    encoded = backbone.processor(images=image, text=backbone.prompt_text(PROMPT), add_special_tokens=False)
    assert backbone.expanded_prompt_ids(PROMPT, image) == list(encoded["input_ids"][0])


def test_a_changed_list_of_prompt_ids_does_not_change_later_ones(backbone: Backbone) -> None:
    backbone.prompt_ids(PROMPT).clear()
    assert backbone.prompt_ids(PROMPT)


def test_a_prompt_with_the_image_token_is_refused(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="<image>"):
        backbone.prompt_ids("What is in <image>?")


def test_merged_features_give_the_hidden_states_of_the_whole_model(backbone: Backbone, image: Image.Image) -> None:
    ids = torch.tensor([backbone.expanded_prompt_ids(PROMPT, image)])
    pixels = backbone.pixel_values([image])
    with torch.no_grad():
        expected = backbone.model.model(input_ids=ids, pixel_values=pixels).last_hidden_state
        embeddings = backbone.input_embeddings(ids, backbone.image_features(pixels))
        hidden = backbone.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-6)


def test_features_for_another_number_of_image_tokens_are_refused(backbone: Backbone, image: Image.Image) -> None:
    features = backbone.image_features(backbone.pixel_values([image]))
    with pytest.raises(ValueError, match="image tokens"):
        backbone.input_embeddings(torch.tensor([backbone.prompt_ids(PROMPT)]), features)


def test_image_pad_and_unknown_tokens_are_banned_but_not_the_end(backbone: Backbone) -> None:
    banned = banned_token_ids(backbone)
    tokenizer = backbone.tokenizer
    assert {backbone.image_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id} <= set(banned)
    assert tokenizer.eos_token_id not in banned


def test_a_missing_path_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give the folder of a LLaVA checkpoint"):
        load_backbone(str(tmp_path / "nowhere"))


def test_a_folder_without_a_checkpoint_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config\.json"):
        load_backbone(str(tmp_path))


def test_a_text_only_model_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"'llama' model, not a LLaVA"):
        load_backbone(str(tmp_path))


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    for name in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((Path(CHECKPOINT) / name).read_text())
    with pytest.raises(UserError, match=r"safetensors"):
        load_backbone(str(tmp_path))


def test_dropout_of_a_checkpoint_is_switched_off(tmp_path: Path) -> None:
    for file in Path(CHECKPOINT).iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((Path(CHECKPOINT) / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.3
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_backbone(str(tmp_path)).model
    assert {layer.self_attn.attention_dropout for layer in model.model.language_model.layers} == {0.0}


def test_what_four_bits_need_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"quantisation=4bit needs an NVIDIA GPU.*set it to none\.$"):
        load_backbone(CHECKPOINT, quantisation="4bit")
