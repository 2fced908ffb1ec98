"""Prompts for PPO that cannot be asked about their images are left out, with the reason."""

import pytest

from actors.alignment.run import askable_prompts, hold_out
from fgaif_ray.config import AlignConfig, DataConfig
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


ASKED = {images: ["Describe.", "What is there?"] for images in [*ALIGN, ("c.png", "g.png"), ("h.png",)]}


def test_images_of_evaluations_are_not_aligned_on_nor_others_that_show_one_of_them() -> None:
    rest, evaluation = hold_out(ASKED, AlignConfig(evaluate_every=5, evaluate_images=2))
    assert [(one.images, one.prompt) for one in evaluation] == [
        (("c.png", "g.png"), "Describe."),
        (("h.png",), "What is there?"),
    ]
    assert list(rest) == [("a.png",), ("d.png", "e.png", "f.png")]


def test_without_evaluations_nothing_is_held_out() -> None:
    assert hold_out(ASKED, AlignConfig()) == (ASKED, ())


def test_evaluations_leave_something_to_align_on() -> None:
    with pytest.raises(UserError, match=r"holds out 5 of 5 images to align on and leaves 0: hold out fewer"):
        hold_out(ASKED, AlignConfig(evaluate_every=5))
