"""``data.max_pixels`` reaches the reward models: in training, in the service, in the report and against the truth."""

from collections.abc import Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL.Image import Image
from support.reward_helpers import CHECKPOINT, PROMPT, offline_model, picture, save_reward_models, service_config
from support.reward_training import feedback_rows, job_config, publish_feedback
from support.watching_rewards import WatchingRewards, answer_about

from actors.rewards.service import RewardScorer, ScorerSettings, _gateway_settings
from actors.rewards.trainer import Reporter, _prepare, train_missing
from fgaif_ray.config import Config, RewardComposition, change_config
from fgaif_ray.experiments.truth import reward_accuracy
from fgaif_ray.images import decode_image, load_images
from fgaif_ray.pixel_budget import PixelBudget
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.report.examples import AnswerPair, judge_examples, pair_answers
from fgaif_ray.rewards import data as reward_data
from fgaif_ray.rewards.encoding import ScoringItem
from fgaif_ray.rewards.scoring import ItemVerdicts, make_batch, score_batches
from fgaif_ray.shapes.scenes import Scene, SceneObject

BUDGET = PixelBudget(max=900)
REWARD = RewardComposition()
REDUCED = (30, 30)
"""The pictures have 60 x 60 pixels."""


def limited(config: Config) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"max_pixels": BUDGET.max})})


def test_training_reads_reduced_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []

    def load(paths: Sequence[str], budget: PixelBudget) -> tuple[Image, ...]:
        images = load_images(paths, budget)
        sizes.extend(image.size for image in images)
        return images

    monkeypatch.setattr(reward_data, "load_images", load)
    publish_feedback(tmp_path / "run", feedback_rows(tmp_path / "images", images=4))
    config = limited(job_config(tmp_path / "run", epochs=1, kind="multitask"))
    prepared = _prepare(config, str(tmp_path / "run" / "feedback"), Reporter(None))
    encoded = len(sizes)
    train_missing(config, str(tmp_path / "partial"), *prepared, None)
    assert 0 < encoded < len(sizes) and set(sizes) == {REDUCED}


def test_a_request_is_scored_on_the_reduced_image() -> None:
    watching = WatchingRewards(attrgetter("size"))
    score_batches(watching, FACT_TYPES, [make_batch([((picture(),), PROMPT, ["A circle."])])], BUDGET)
    assert watching.seen == [REDUCED]


def test_the_service_scores_like_the_model_on_reduced_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.rewards.service.record_batch", lambda *_figures: None)  # Serve exports them
    folders = save_reward_models(tmp_path)
    settings = ScorerSettings(
        CHECKPOINT, "float32", "none", False, folders, 4, None, dict.fromkeys(folders, "v"), BUDGET, {}
    )
    batch = make_batch([((picture(),), PROMPT, ["A red circle."])])
    [[scored]] = RewardScorer(settings)._score_now([batch])
    item = ScoringItem([decode_image(picture(), BUDGET)], PROMPT, ["A red circle."])
    expected = offline_model(folders).score_types(FACT_TYPES, [item])
    assert isinstance(scored, ItemVerdicts)
    for fact_type in FACT_TYPES:
        np.testing.assert_allclose(scored.probabilities[fact_type], expected[fact_type][0], atol=1e-5)


def test_a_service_with_another_budget_is_another_service(tmp_path: Path) -> None:
    folders = save_reward_models(tmp_path)
    config = service_config(tmp_path)
    assert _gateway_settings(config, folders).identity != _gateway_settings(limited(config), folders).identity


def test_a_service_in_another_language_is_another_service(tmp_path: Path) -> None:
    folders = save_reward_models(tmp_path)
    config = service_config(tmp_path)
    german = _gateway_settings(change_config(config, ["data.language=de"]), folders)
    assert german.language == "de"
    assert german.identity != _gateway_settings(config, folders).identity


def test_the_report_judges_and_shows_reduced_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    before, after = (answer_about(tmp_path / "a.png", which) for which in ("before", "after"))
    watching = WatchingRewards(attrgetter("size"))
    judge_examples([AnswerPair(before.question.images, PROMPT, before, after)], None, watching, REWARD, BUDGET)
    assert watching.seen == [REDUCED] * 2


def test_reward_models_meet_the_truth_on_reduced_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    truth = {str(tmp_path / "a.png"): Scene((SceneObject("circle", "red", "large", 0, 0),), fog=0.0, seed=1)}
    watching: Any = WatchingRewards(attrgetter("size"))
    reward_accuracy([answer_about(tmp_path / "a.png", "before")], truth, watching, False, FACT_TYPES, BUDGET)
    assert watching.seen == [REDUCED]


def test_the_report_judges_by_all_images_and_names_them(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture())
    both = (
        replace(one, question=replace(one.question, more_images=(str(tmp_path / "b.png"),)))
        for one in (answer_about(tmp_path / "a.png", which) for which in ("before", "after"))
    )
    alone = [answer_about(tmp_path / "a.png", which) for which in ("before", "after")]
    pairs = pair_answers([*both, *alone])
    watching = WatchingRewards(attrgetter("size"))
    examples = judge_examples(pairs, None, watching, REWARD)
    assert [example.name for example in examples] == ["a.png", "a.png, b.png"]
    assert len(watching.seen) == 2 * 3
