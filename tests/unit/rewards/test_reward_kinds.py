"""Training that goes on after an interruption, and the other kinds of reward model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support.reward_helpers import predict
from support.reward_training import CHECKPOINT, OPTIONS, feedback_rows, interrupted_training, job_config, silent, train

from actors.rewards.trainer import Reporter, train_missing
from fgaif_ray.config import Config
from fgaif_ray.images import load_images
from fgaif_ray.records import ABSENT, CONSISTENT, FACT_TYPES, HALLUCINATED
from fgaif_ray.rewards.checkpoint import TrainingCheckpoint, TrainingState
from fgaif_ray.rewards.data import FeatureCache, RewardData, from_feedback, prepare_data
from fgaif_ray.rewards.encoding import ScoringItem
from fgaif_ray.rewards.kinds import IGNORED, RewardTask, response_label
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.rewards.model_files import load_reward_model
from fgaif_ray.rewards.training import train_reward_model
from fgaif_ray.vlm.backbone import load_backbone


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RewardData:
    responses = from_feedback(feedback_rows(tmp_path_factory.mktemp("images")), FACT_TYPES)
    return prepare_data(load_backbone(CHECKPOINT, "float32"), responses, 0.25, 0, silent)


# Checkpoints


def test_an_interrupted_training_goes_on_after_its_last_epoch_as_if_nothing_had_been(
    data: RewardData, tmp_path: Path
) -> None:
    task = RewardTask("existence", ("existence",), ("existence",))
    interrupted_training(data, tmp_path, task, after_epoch=2, seed=0)
    model = RewardModel(load_backbone(CHECKPOINT, "float32"))
    features, options = FeatureCache(model.backbone), OPTIONS.model_copy(update={"epochs": 3})
    notes: list[str] = []
    checkpoint = TrainingCheckpoint(str(tmp_path), "existence")
    metrics = train_reward_model(
        model, task, data, features, options, 0, lambda _, note: notes.append(note), checkpoint
    )["existence"]
    whole, expected = train(data, epochs=3)
    assert notes[0] == "goes on after epoch 2" and notes[1].startswith("epoch 3/3")
    timeless = {"seconds": 0.0}
    assert metrics | timeless == expected | timeless
    for found, wanted in zip(
        model.trainable_parameters("existence"), whole.trainable_parameters("existence"), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def parameters_and_optimiser(value: float) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
    parameters = [torch.nn.Parameter(torch.full((2,), value))]
    optimiser = torch.optim.AdamW(parameters)
    parameters[0].grad = torch.ones(2)
    optimiser.step()
    return parameters, optimiser


def state_at(epoch: int, parameters: list[torch.nn.Parameter]) -> TrainingState:
    return TrainingState(epoch=epoch, best_parameters=[value.detach().clone() for value in parameters])


def test_a_checkpoint_replaces_the_one_before_and_leaves_nothing_behind(tmp_path: Path) -> None:
    parameters, optimiser = parameters_and_optimiser(1.0)
    checkpoint = TrainingCheckpoint(str(tmp_path), "existence")
    for epoch in (1, 2):
        checkpoint.save(state_at(epoch, parameters), parameters, optimiser)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == [f"existence.checkpoint-{epoch}", "existence.checkpoint.json"]
    checkpoint.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_was_being_written_when_the_process_died_does_not_count(tmp_path: Path) -> None:
    parameters, optimiser = parameters_and_optimiser(1.0)
    checkpoint = TrainingCheckpoint(str(tmp_path), "existence")
    checkpoint.save(state_at(1, parameters), parameters, optimiser)
    (tmp_path / "existence.checkpoint-2").mkdir()
    others, other_optimiser = parameters_and_optimiser(5.0)
    assert checkpoint.load(others, other_optimiser).epoch == 1
    torch.testing.assert_close(others[0], parameters[0], rtol=0, atol=0)
    checkpoint.remove()
    assert list(tmp_path.iterdir()) == []


# Kinds


CODES = st.sampled_from([ABSENT, CONSISTENT, HALLUCINATED, IGNORED])


@given(st.fixed_dictionaries({name: st.lists(CODES, min_size=1, max_size=4).map(tuple) for name in FACT_TYPES}))
def test_one_hallucinated_sub_sentence_makes_the_response_hallucinated(labels: dict[str, tuple[int, ...]]) -> None:
    codes = [code for of_type in labels.values() for code in of_type]
    label = response_label(labels)
    assert (label == HALLUCINATED) == (HALLUCINATED in codes)
    assert (label == IGNORED) == (IGNORED in codes and HALLUCINATED not in codes)
    assert (label == ABSENT) == (set(codes) == {ABSENT})


def test_a_response_that_repeats_itself_is_not_hallucinated() -> None:
    true = dict.fromkeys(FACT_TYPES, (CONSISTENT, CONSISTENT))
    assert response_label({**true, "novelty": (CONSISTENT, HALLUCINATED)}) == CONSISTENT


def train_kind(data: RewardData, folder: Path, kind: str, **rewards: Any) -> dict[str, dict[str, Any]]:
    """Train into ``folder`` as the job does; returns the metrics by fact type."""
    config = job_config(folder, kind=kind, **rewards)
    train_missing(config, str(folder), load_backbone(CHECKPOINT, "float32"), data, Reporter(None))
    assert sorted(path.name for path in folder.iterdir()) == sorted(FACT_TYPES)
    return {name: json.loads((folder / name / "metrics.json").read_text()) for name in FACT_TYPES}


def calls_of_the_language_model(model: RewardModel, examples: list[Any]) -> int:
    calls: list[None] = []
    hook = model.backbone.decoder.register_forward_hook(lambda *_: calls.append(None))
    items = [ScoringItem(load_images(one.images), "Describe this image.", ["A red circle."]) for one in examples]
    model.score_types(FACT_TYPES, items)
    hook.remove()
    return len(calls)


def test_one_adapter_learns_the_three_types_and_one_pass_answers_for_them(data: RewardData, tmp_path: Path) -> None:
    metrics = train_kind(RewardData(data.train, data.train, data.counts), tmp_path, "multitask", epochs=8)
    for fact_type in FACT_TYPES:
        assert metrics[fact_type]["balanced_accuracy"] > 0.9
        assert metrics[fact_type]["trained_with"] == list(FACT_TYPES)
    folders = {name: str(tmp_path / name) for name in FACT_TYPES}
    model = load_reward_model(load_backbone(CHECKPOINT, "float32"), folders)
    assert calls_of_the_language_model(model, data.validation) == 1
    for fact_type in FACT_TYPES:
        predicted = predict(model, fact_type, data.train, FeatureCache(model.backbone)).argmax(axis=1)
        confusion = np.zeros((3, 3), int)
        np.add.at(confusion, ([label for one in data.train for label in one.labels[fact_type]], predicted), 1)
        assert metrics[fact_type]["confusion"] == confusion.tolist()


def test_a_coarse_model_is_measured_by_response_and_stands_for_every_type(data: RewardData, tmp_path: Path) -> None:
    metrics = train_kind(data, tmp_path, "coarse", epochs=1)
    assert {found["count"] for found in metrics.values()} == {len(data.validation)}
    folders = {name: str(tmp_path / name) for name in FACT_TYPES}
    model = load_reward_model(load_backbone(CHECKPOINT, "float32"), folders)
    item = ScoringItem(load_images(data.validation[0].images), "Describe this image.", ["Red.", "A star.", "No."])
    scores = [found[0] for found in model.score_types(FACT_TYPES, [item]).values()]
    assert scores[0][:2].tolist() == [[1, 0, 0], [1, 0, 0]] and 0 < scores[0][2].max() < 1
    for other in scores[1:]:
        np.testing.assert_array_equal(other, scores[0])


def test_a_coarse_verdict_is_not_to_be_divided_by_the_number_of_sub_sentences(tmp_path: Path) -> None:
    tree = job_config(tmp_path).model_dump()
    tree["rewards"]["kind"], tree["align"]["reward"]["normalise_by_segments"] = "coarse", True
    with pytest.raises(ValidationError, match="leave it at false"):
        Config.model_validate(tree)
