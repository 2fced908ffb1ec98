"""What is known of a model without its weights, compared with the model with them."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from support.paths import ROOT

from fgaif_ray.errors import UserError
from fgaif_ray.prompts import canonical_prompt
from fgaif_ray.vlm.backbone import load_backbone
from fgaif_ray.vlm.front_end import FrontEnd, load_front_end

CHECKPOINT = str(ROOT / "fgaif_ray/shapes/checkpoints/policy")
PROMPT = "Describe this image in detail."


@pytest.fixture(scope="module")
def front_end() -> FrontEnd:
    return load_front_end(CHECKPOINT)


@pytest.fixture
def image() -> Image.Image:
    return Image.new("RGB", (60, 60), (200, 30, 30))


def test_prompt_ids_hold_the_image_once_and_begin_with_one_bos(front_end: FrontEnd) -> None:
    ids = front_end.prompt_ids(PROMPT)
    assert ids.count(front_end.config.image_token_id) == 1
    assert [index for index, token in enumerate(ids) if token == front_end.tokenizer.bos_token_id] == [0]


def test_special_tokens_are_added_where_the_template_has_no_bos(front_end: FrontEnd) -> None:
    calls = []

    def tokenise(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        calls.append(add_special_tokens)
        return {"input_ids": front_end.tokenizer(text, add_special_tokens=False)["input_ids"]}

    tokenise.bos_token = "<other>"  # type: ignore[attr-defined]
    template = front_end.processor.apply_chat_template
    tokenise.eos_token_id = 2  # type: ignore[attr-defined]
    tokenise.all_special_ids, tokenise.added_tokens_decoder = [], {}  # type: ignore[attr-defined]
    processor = SimpleNamespace(tokenizer=tokenise, apply_chat_template=template, image_token="<image>")
    FrontEnd(CHECKPOINT, front_end.config, processor).prompt_ids(PROMPT)
    assert calls == [True]


def test_expanded_ids_equal_what_the_processor_makes(front_end: FrontEnd, image: Image.Image) -> None:
    encoded = front_end.processor(images=image, text=front_end.prompt_text(PROMPT), add_special_tokens=False)
    assert list(front_end.encode_prompt(PROMPT, [image]).input_ids) == list(encoded["input_ids"][0])


def test_a_prompt_fits_an_engine_with_one_more_position(front_end: FrontEnd, image: Image.Image) -> None:
    length = len(front_end.encode_prompt(PROMPT, [image]))
    front_end.check_prompts([(PROMPT, 1)], length + 1)
    with pytest.raises(UserError, match=rf"cannot be asked: the prompt takes {length} tokens"):
        front_end.check_prompts([(PROMPT, 1)], length)


def test_a_prompt_that_spells_out_a_special_token_is_refused(front_end: FrontEnd) -> None:
    with pytest.raises(ValueError, match="special token '</s>'"):
        front_end.prompt_ids("Say </s> please.")


def test_a_marker_is_the_place_of_the_image(front_end: FrontEnd, image: Image.Image) -> None:
    assert front_end.prompt_text("Look at <image> please.").count("<image>") == 1
    encoded = front_end.encode_prompt("Compare <image> with <image> please.", [image, image])
    assert encoded.image_tokens == 2 * front_end.encode_prompt(PROMPT, [image]).image_tokens
    with pytest.raises(ValueError, match=r"2 places for an image .* asked with 1 image"):
        front_end.prompt_ids("Compare <image> with <image>.")


def test_a_system_message_comes_into_the_prompt() -> None:
    part = "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    message = "[{{ message.role }}]{% for part in message.content %}" + part + "{% endfor %}"
    template = "{% for message in messages %}" + message + "{% endfor %}{% if shout %}!{% endif %}"
    front_end = load_front_end(CHECKPOINT, {"shout": True})
    front_end.processor.chat_template = template
    chat = canonical_prompt(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is <image>?"}]
    )
    assert front_end.prompt_text(chat) == "[system]Be brief.[user]What is <image>?!"


def test_all_special_tokens_are_banned_but_those_that_end_a_response(front_end: FrontEnd) -> None:
    special = {token for token in front_end.tokenizer.all_special_ids if token != front_end.tokenizer.eos_token_id}
    assert len(special) == 4
    assert special <= set(front_end.banned_token_ids)
    assert front_end.tokenizer.eos_token_id not in front_end.banned_token_ids


def test_every_end_that_the_generation_config_names_may_be_sampled(tmp_path: Path) -> None:
    for file in Path(CHECKPOINT).iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    front_end = load_front_end(str(tmp_path))
    assert set(front_end.eos_token_ids) == {1, 2}
    assert not {1, 2} & set(front_end.banned_token_ids)


def test_every_row_of_the_vocabulary_head_is_a_token_or_banned(front_end: FrontEnd) -> None:
    rows = load_backbone(CHECKPOINT).model.get_output_embeddings().weight.shape[0]
    assert set(range(rows)) <= set(front_end.tokenizer.get_vocab().values()) | set(front_end.banned_token_ids)
