"""Blind controls: other images or grey ones in the places of images."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fgaif_ray.blind import GREY, Blindfold
from fgaif_ray.errors import UserError
from fgaif_ray.images import load_image

PATHS = st.lists(st.text("abcdef", min_size=1, max_size=3), min_size=2, max_size=9, unique=True)


@given(PATHS, st.integers(0, 9))
def test_swapped_images_are_others_and_each_is_shown_once(paths: list[str], seed: int) -> None:
    blind = Blindfold("swapped", [(path,) for path in paths], seed, "run")
    shown = {path: blind.shown((path,)) for path in paths}
    assert all(other != path for path, (other,) in shown.items())
    assert sorted(other for (other,) in shown.values()) == sorted(paths)


@given(PATHS, st.integers(0, 9))
def test_the_order_in_which_images_are_named_makes_no_difference(paths: list[str], seed: int) -> None:
    one, other = (Blindfold("swapped", [(path,) for path in some], seed, "run") for some in (paths, paths[::-1]))
    assert [one.shown((path,)) for path in paths] == [other.shown((path,)) for path in paths]


def test_another_seed_swaps_otherwise() -> None:
    paths = [(f"{number}.png",) for number in range(20)]
    shown = [[Blindfold("swapped", paths, seed, "run").shown(path) for path in paths] for seed in (0, 1)]
    assert shown[0] != shown[1]


def test_several_images_are_all_replaced() -> None:
    prompts = [("a", "b"), ("c", "d"), ("e",)]
    blind = Blindfold("swapped", prompts, 0, "run")
    for images in prompts:
        shown = blind.shown(images)
        assert len(shown) == len(set(shown)) == len(images) and not {*shown} & {*images}


@pytest.mark.parametrize("images", [("a",), ("a", "b")])
def test_too_few_images_cannot_be_swapped(images: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"no others.*data\.blind"):
        Blindfold("swapped", [images], 0, "run").shown(images)


def test_blank_images_are_grey_and_of_the_same_size(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), "red").save(tmp_path / "wide.png")
    Image.new("RGB", (20, 30), "red").save(tmp_path / "high.png")
    images = (str(tmp_path / "wide.png"), str(tmp_path / "high.png"))
    blind = Blindfold("blank", [images], 0, str(tmp_path / "run"))
    shown = [load_image(path) for path in blind.shown(images)]
    assert [picture.size for picture in shown] == [(30, 20), (20, 30)]
    assert {colour for picture in shown for _, colour in picture.getcolors() or ()} == {GREY}
    assert len(list((tmp_path / "run" / "blank-images").iterdir())) == 2
    assert Blindfold("blank", [images], 1, str(tmp_path / "run")).shown(images) == blind.shown(images)


def test_an_image_that_cannot_be_read_stays(tmp_path: Path) -> None:
    gone = (str(tmp_path / "gone.png"),)
    assert Blindfold("blank", [gone], 0, str(tmp_path)).shown(gone) == gone


def test_without_a_blindfold_images_stay() -> None:
    assert Blindfold("none", [("a",)], 0, "run").shown(("z",)) == ("z",)
