import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.paths import ROOT
from transformers import LlamaConfig, LlamaForCausalLM

from fgaif_ray.errors import UserError
from fgaif_ray.vlm.backbone import Backbone, load_backbone

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


def test_merged_features_give_the_hidden_states_of_the_whole_model(backbone: Backbone, image: Image.Image) -> None:
    prompt = backbone.front_end.encode_prompt(PROMPT, [image])
    with torch.no_grad():
        expected = backbone.model.model(input_ids=torch.tensor([prompt.input_ids]), **prompt.image_inputs)
        hidden = backbone.states(backbone.rows([prompt], [[]]), backbone.image_features([prompt]))
    torch.testing.assert_close(hidden, expected.last_hidden_state, rtol=0, atol=1e-6)


def test_features_for_another_number_of_image_tokens_are_refused(backbone: Backbone, image: Image.Image) -> None:
    prompt = replace(backbone.front_end.encode_prompt(PROMPT, [image]), image_tokens=8)
    with pytest.raises(ValueError, match="8 image tokens cannot take 9 image features"):
        backbone.image_features([prompt])


def test_a_missing_path_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a folder here and not downloaded.*`hf download "):
        load_backbone(str(tmp_path / "nowhere"))


def test_a_folder_without_a_checkpoint_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"broken: .*config\.json \(it is missing\)"):
        load_backbone(str(tmp_path))


def test_a_text_only_model_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is not supported \(it is of the type 'llama', which does not see images"):
        load_backbone(str(tmp_path))


def test_a_checkpoint_without_weights_is_refused(tmp_path: Path) -> None:
    for name in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((Path(CHECKPOINT) / name).read_text())
    with pytest.raises(UserError, match=r"broken: .*model\.safetensors \(it is missing\)"):
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
