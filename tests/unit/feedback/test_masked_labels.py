"""Reward models trained where some labels are not to be learnt."""

import dataclasses
from pathlib import Path

import pytest
from support.reward_training import OPTIONS, feedback_rows, silent

from fgaif_ray.errors import UserError
from fgaif_ray.records import ABSENT, FACT_TYPES
from fgaif_ray.rewards.data import IGNORED, Example, FeatureCache, RewardData, from_feedback, prepare_data
from fgaif_ray.rewards.kinds import RewardTask
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.rewards.training import train_reward_model
from fgaif_ray.vlm.backbone import load_backbone

FAST = OPTIONS.model_copy(update={"epochs": 1})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> RewardData:
    backbone = load_backbone(OPTIONS.backbone, "float32")
    responses = from_feedback(feedback_rows(tmp_path_factory.mktemp("images"), 8), FACT_TYPES)
    return prepare_data(backbone, responses, 0.25, 0, silent)


def masked(examples: list[Example], only: int | None = None) -> list[Example]:
    """Examples without the labels of one class, or without any."""
    return [
        dataclasses.replace(
            example,
            labels={
                name: tuple(IGNORED if only in (None, label) else label for label in labels)
                for name, labels in example.labels.items()
            },
        )
        for example in examples
    ]


def train(data: RewardData) -> dict[str, object]:
    model = RewardModel(load_backbone(OPTIONS.backbone, "float32"))
    task = RewardTask("existence", ("existence",), ("existence",))
    return train_reward_model(model, task, data, FeatureCache(model.backbone), FAST, 0, silent)["existence"]


def test_masked_labels_are_neither_learnt_nor_measured(data: RewardData) -> None:
    found = train(
        dataclasses.replace(data, train=masked(data.train, ABSENT), validation=masked(data.validation, ABSENT))
    )
    assert found["support"]["absent"] == 0
    assert found["count"] == len(data.validation)
    assert found["curve"][0]["train_loss"] > 0


def test_masked_responses_are_left_out(data: RewardData) -> None:
    mixed = dataclasses.replace(data, train=[*masked(data.train), *data.train])
    assert train(mixed)["curve"] == train(data)["curve"]


def test_nothing_to_learn_from_is_said_in_a_sentence(data: RewardData) -> None:
    with pytest.raises(UserError, match="no existence label to learn from"):
        train(dataclasses.replace(data, train=masked(data.train)))


def test_nothing_to_measure_with_is_said_in_a_sentence(data: RewardData) -> None:
    with pytest.raises(UserError, match="no existence label to measure with"):
        train(dataclasses.replace(data, validation=masked(data.validation)))


def test_masked_rows_come_in_as_masked(tmp_path: Path) -> None:
    row = feedback_rows(tmp_path, 2)[0]
    first, *others = row.segments
    first = dataclasses.replace(first, labels={**first.labels, "existence": None})
    assert (
        from_feedback([dataclasses.replace(row, segments=(first, *others))], FACT_TYPES)[0].labels["existence"][0]
        == IGNORED
    )
