"""Reward models that are shown other images than they are asked about: in training, in the report, in accuracy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL.Image import Image
from support.reward_helpers import PROMPT, picture
from support.reward_training import feedback_rows, job_config, publish_feedback
from support.watching_rewards import WatchingRewards, answer_about

from actors.rewards.trainer import Reporter, _prepare
from fgaif_ray.blind import GREY, Blindfold
from fgaif_ray.config import Config, RewardComposition, change_config
from fgaif_ray.experiments.truth import reward_accuracy
from fgaif_ray.images import load_images
from fgaif_ray.pixel_budget import UNLIMITED
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.report.examples import AnswerPair, judge_examples
from fgaif_ray.rewards import data as reward_data
from fgaif_ray.shapes.scenes import Scene, SceneObject


def is_grey(image: Image) -> bool:
    return [colour for _, colour in image.getcolors() or ()] == [GREY]


def prepared(config: Config, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[tuple[Sequence[str], Any]]]:
    """The examples of a run, and every prompt's images that were opened for them."""
    opened: list[tuple[Sequence[str], Any]] = []

    def load(paths: Sequence[str], budget: Any) -> tuple[Image, ...]:
        images = load_images(paths, budget)
        opened.append((paths, images))
        return images

    monkeypatch.setattr(reward_data, "load_images", load)
    return _prepare(config, f"{config.run.dir}/feedback", Reporter(None))[1], opened


@pytest.mark.parametrize("mode", ["swapped", "blank"])
def test_training_is_blind_on_the_same_split(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_feedback(tmp_path / "run", feedback_rows(tmp_path / "images", images=6))
    config = job_config(tmp_path / "run", epochs=1, kind="multitask")
    seeing, seen = prepared(config, monkeypatch)
    blind, opened = prepared(change_config(config, [f"data.blind.rewards={mode}"]), monkeypatch)
    assert blind.counts == seeing.counts
    for part in ("train", "validation"):
        one, other = getattr(seeing, part), getattr(blind, part)
        assert [example.image_sha256 for example in one] == [example.image_sha256 for example in other]
        assert [example.labels for example in one] == [example.labels for example in other]
        assert all(example.images != hidden.images for example, hidden in zip(one, other, strict=True))
    assert len(opened) == len(seen)
    paths = {path for some, _ in seen for path in some}
    if mode == "blank":
        assert all(is_grey(image) for _, images in opened for image in images)
    else:
        assert {path for some, _ in opened for path in some} == paths


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(picture())
    return tmp_path / "a.png"


def shown(image: Path) -> Any:
    return Blindfold("blank", [(str(image),)], 0, str(image.parent)).shown


def test_blind_reward_models_meet_the_truth_blind(image: Path) -> None:
    truth = {str(image): Scene((SceneObject("circle", "red", "large", 0, 0),), fog=0.0, seed=1)}
    watching: Any = WatchingRewards(is_grey)
    reward_accuracy([answer_about(image, "before")], truth, watching, False, FACT_TYPES, UNLIMITED, shown(image))
    assert watching.seen == [True]


def test_the_report_shows_images_that_its_blind_reward_models_do_not_see(image: Path) -> None:
    before, after = (answer_about(image, which) for which in ("before", "after"))
    watching = WatchingRewards(is_grey)
    pair = AnswerPair(before.question.images, PROMPT, before, after)
    [hidden] = judge_examples([pair], None, watching, RewardComposition(), UNLIMITED, shown(image))
    [open_] = judge_examples([pair], None, watching, RewardComposition())
    assert watching.seen == [True, True, False, False]
    assert hidden.picture == open_.picture
