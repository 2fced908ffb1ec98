"""Prompts as the sampling engine reads them, and seeds of its requests."""

from pathlib import Path

import pytest
from PIL import Image
from support.sampling_runs import POLICY, PROMPTS, make_config, write_images

from actors.engine.chat import ImageChat
from actors.sampling.sampler import request_seed
from fgaif_ray.errors import UserError
from jobs import sample


@pytest.fixture(scope="module")
def chat() -> ImageChat:
    return ImageChat(str(POLICY))


def test_model_that_is_no_vision_language_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    with pytest.raises(UserError, match="LLaVA checkpoint"):
        sample.run(make_config(tmp_path / "images", tmp_path / "run", model=str(tmp_path)))


def test_chat_agrees_with_the_backbone_that_reads_the_responses_later(chat: ImageChat) -> None:
    from fgaif_ray.vlm.backbone import banned_token_ids, load_backbone

    backbone = load_backbone(str(POLICY))
    assert list(chat.token_ids(PROMPTS[0])) == backbone.prompt_ids(PROMPTS[0])
    assert chat.banned == banned_token_ids(backbone)
    assert chat.image_tokens == backbone.image_token_count(Image.new("RGB", (60, 60)))


def test_prompt_that_holds_the_image_token_is_refused(chat: ImageChat) -> None:
    with pytest.raises(ValueError, match="image token"):
        chat.token_ids("Compare with <image> please.")


def test_request_seeds_depend_on_run_and_sample() -> None:
    assert len({request_seed(0, "a"), request_seed(1, "a"), request_seed(0, "b")}) == 3
