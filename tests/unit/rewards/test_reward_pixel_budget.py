"""``data.max_pixels`` reaches the reward models: in training, in the service, in the report and against the truth."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL.Image import Image
from support.reward_helpers import CHECKPOINT, PROMPT, offline_model, picture, save_reward_models, service_config
from support.reward_training import feedback_rows, job_config, publish_feedback

from actors.rewards.service import RewardScorer, ScorerSettings, _gateway_settings
from actors.rewards.trainer import Reporter, _prepare, train_missing
from fgaif_ray.config import Config, RewardComposition, change_config
from fgaif_ray.evaluation.rows import EvaluationAnswer
from fgaif_ray.experiments.truth import reward_accuracy
from fgaif_ray.images import decode_image, load_images
from fgaif_ray.pixel_budget import PixelBudget
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.report.examples import AnswerPair, judge_examples, pair_answers
from fgaif_ray.rewards import data as reward_data
from fgaif_ray.rewards.encoding import ScoringItem
from fgaif_ray.rewards.judged import Judged
from fgaif_ray.rewards.scoring import ItemVerdicts, make_batch, score_batches
from fgaif_ray.shapes.scenes import Scene, SceneObject

BUDGET = PixelBudget(max=900)
REWARD = RewardComposition()
REDUCED = (30, 30)
"""The pictures have 60 x 60 pixels."""


def limited(config: Config) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"max_pixels": BUDGET.max})})


def answer(image: Path, which: str) -> EvaluationAnswer:
    return EvaluationAnswer.from_row(
        {
            "id": which,
            "which": which,
            "task": "sampled",
            "image": str(image),
            "prompt": PROMPT,
            "temperature": 1.0,
            "max_tokens": 8,
            "seed": 0,
            "response": "There is a red circle.",
            "tokens": 6,
            "finish_reason": "stop",
        }
    )


class Watching:
    """Reward models that note the sizes of the images they are shown."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def encode(self, item: ScoringItem) -> ScoringItem:
        self.sizes += [image.size for image in item.images]
        return item

    def judge_encoded(self, kinds: Sequence[str], items: Sequence[ScoringItem]) -> Judged:
        scores = [np.array([[0.0, 1.0, 0.0]] * len(item.segments), np.float32) for item in items]
        return Judged(dict.fromkeys(kinds, scores), {})

    def score_types(self, kinds: Sequence[str], items: Sequence[ScoringItem]) -> dict[str, list[NDArray[np.float32]]]:
        return self.judge_encoded(kinds, [self.encode(item) for item in items]).probabilities


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
    watching = Watching()
    score_batches(watching, FACT_TYPES, [make_batch([((picture(),), PROMPT, ["A circle."])])], BUDGET)
    assert watching.sizes == [REDUCED]


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
    before, after = (answer(tmp_path / "a.png", which) for which in ("before", "after"))
    watching = Watching()
    judge_examples([AnswerPair(before.question.images, PROMPT, before, after)], None, watching, REWARD, BUDGET)
    assert watching.sizes == [REDUCED] * 2


def test_reward_models_meet_the_truth_on_reduced_images(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    truth = {str(tmp_path / "a.png"): Scene((SceneObject("circle", "red", "large", 0, 0),), fog=0.0, seed=1)}
    watching: Any = Watching()
    reward_accuracy([answer(tmp_path / "a.png", "before")], truth, watching, False, FACT_TYPES, BUDGET)
    assert watching.sizes == [REDUCED]


def test_the_report_judges_by_all_images_and_names_them(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(picture())
    both = (
        replace(one, question=replace(one.question, more_images=(str(tmp_path / "b.png"),)))
        for one in (answer(tmp_path / "a.png", which) for which in ("before", "after"))
    )
    alone = [answer(tmp_path / "a.png", which) for which in ("before", "after")]
    pairs = pair_answers([*both, *alone])
    watching = Watching()
    examples = judge_examples(pairs, None, watching, REWARD)
    assert [example.name for example in examples] == ["a.png", "a.png, b.png"]
    assert len(watching.sizes) == 2 * 3
