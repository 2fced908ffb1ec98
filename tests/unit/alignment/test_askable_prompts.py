"""Prompts for PPO that cannot be asked about their images are left out, with the reason."""

import pytest

from actors.alignment.run import askable_prompts
from fgaif_ray.config import DataConfig
from fgaif_ray.errors import UserError
from fgaif_ray.sources import Images, ImageSets

DATA = DataConfig(source="shapes", images_per_prompt=2)
ALIGN: list[Images] = [("a.png",), ("b.png", "c.png"), ("d.png", "e.png", "f.png")]
PAIR = "Is <image> like <image>?"


def test_shared_prompts_are_asked_where_they_fit(capsys: pytest.CaptureFixture[str]) -> None:
    data = DataConfig(source="shapes", images_per_prompt=2, prompts=(PAIR, "Describe."))
    assert askable_prompts(ImageSets([], ALIGN, []), data) == {
        ("a.png",): ["Describe."],
        ("b.png", "c.png"): [PAIR, "Describe."],
    }
    said = capsys.readouterr().out
    assert "3 prompts cannot be asked" in said and "about a.png: the prompt has 2 places" in said


def test_images_of_which_no_prompt_can_be_asked_are_left_out() -> None:
    own = {ALIGN[0]: (PAIR,), ALIGN[1]: (PAIR, "What is in <image>?"), ALIGN[2]: ("Compare.",)}
    assert askable_prompts(ImageSets([], ALIGN, [], own), DATA) == {ALIGN[1]: [PAIR]}


def test_nothing_that_can_be_asked_is_an_error() -> None:
    with pytest.raises(UserError, match=r"None of the prompts for PPO .* 3 images, more than data\.images_per_prompt"):
        askable_prompts(ImageSets([], ALIGN[2:], []), DATA)
