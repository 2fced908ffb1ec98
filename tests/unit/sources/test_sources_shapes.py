"""Scenes of other splits and augmented images beside those that runs have in common."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fgaif_ray import storage
from fgaif_ray.config import Config, load_config
from fgaif_ray.errors import UserError
from fgaif_ray.shapes.augmentation import augment
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import UNSEEN_PAIRS, draw_scene
from fgaif_ray.sources import load_truth, prepare_images


def world(tmp_path: Path, *overrides: str) -> Config:
    counts = ("data.sample_images=3", "data.align_images=2", "data.evaluate_images=4")
    return load_config("configs/shapes.yaml", [f"run.dir={tmp_path}/run", *counts, *overrides])


def test_other_scenes_to_evaluate_on_leave_the_training_images_where_they_are(tmp_path: Path) -> None:
    plain = prepare_images(world(tmp_path))
    fog = prepare_images(world(tmp_path, "data.shapes.evaluate_split=fog"))
    assert (fog.sample, fog.align) == (plain.sample, plain.align)
    assert set(fog.evaluate).isdisjoint(plain.evaluate)


def test_the_truth_knows_the_scenes_of_the_split(tmp_path: Path) -> None:
    config = world(tmp_path, "data.shapes.evaluate_split=unseen_pairs")
    truth = load_truth(config)
    assert truth is not None
    for (image,) in prepare_images(config).evaluate:
        assert any((item.shape, item.color) in UNSEEN_PAIRS for item in truth[image].objects)


def test_augmentation_changes_training_images_alone(tmp_path: Path) -> None:
    plain = prepare_images(world(tmp_path))
    augmented = prepare_images(world(tmp_path, "data.shapes.augmented=1"))
    assert augmented.evaluate == plain.evaluate
    pairs = zip((*plain.sample, *plain.align), (*augmented.sample, *augmented.align), strict=True)
    assert all(storage.read_bytes(*one) != storage.read_bytes(*other) for one, other in pairs)


def test_augmented_images_keep_their_truth(tmp_path: Path) -> None:
    config = world(tmp_path, "data.shapes.augmented=1")
    truth = load_truth(config)
    assert truth is not None
    plain, augmented = prepare_images(world(tmp_path)), prepare_images(config)
    assert [truth[image] for (image,) in augmented.sample] == [truth[image] for (image,) in plain.sample]


def test_runs_can_share_a_folder_of_images(tmp_path: Path) -> None:
    one, other = (
        prepare_images(world(tmp_path, f"run.dir={tmp_path}/{name}", f"data.path={tmp_path}/images")) for name in "ab"
    )
    assert one == other


def test_only_the_embedded_world_draws_other_scenes() -> None:
    with pytest.raises(UserError, match=r"data\.shapes is not read"):
        load_config("configs/shapes.yaml", ["data.source=folder", "data.path=images", "data.shapes.evaluate_split=fog"])


@given(st.integers(0, 50))
def test_augmentation_is_repeatable(index: int) -> None:
    image = render(draw_scene("train", index))
    assert augment(image, "key", 1.0).tobytes() == augment(image, "key", 1.0).tobytes()


def test_a_share_of_zero_changes_nothing() -> None:
    image = Image.new("RGB", (4, 4))
    assert augment(image, "key", 0.0) is image
