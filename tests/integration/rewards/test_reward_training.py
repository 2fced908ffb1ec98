import hashlib
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.paths import ROOT
from support.reward_helpers import predict

from fgaif_ray import storage
from fgaif_ray.config import Config, LoRAOptions, RewardsConfig
from fgaif_ray.errors import UserError
from fgaif_ray.records import ABSENT, CONSISTENT, FACT_TYPES, FEEDBACK_SCHEMA, HALLUCINATED
from fgaif_ray.rewards import training as reward_training
from fgaif_ray.rewards.card import model_card
from fgaif_ray.rewards.checkpoint import TrainingCheckpoint
from fgaif_ray.rewards.data import (
    ImageFeatures,
    RewardData,
    TrainingResponse,
    from_feedback,
    make_batches,
    prepare_data,
    split_by_image,
)
from fgaif_ray.rewards.kinds import RewardTask, reward_tasks
from fgaif_ray.rewards.model import RewardModel, load_reward_model
from fgaif_ray.rewards.training import (
    CLASS_WEIGHT_CAP,
    class_weights,
    learning_rate_factor,
    train_reward_model,
)
from fgaif_ray.vlm.backbone import Backbone, load_backbone
from jobs import train_rewards
from jobs.cli import find_user_error

CHECKPOINT = str(ROOT / "fgaif_ray/shapes/checkpoints/annotator")
OPTIONS = RewardsConfig(
    backbone=CHECKPOINT,
    dtype="float32",
    lora=LoRAOptions(rank=8, alpha=16),
    learning_rate=5e-3,
    batch_size=8,
    epochs=12,
    patience=12,
    validation_fraction=0.25,
)
COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


def feedback_rows(folder: Path, images: int = 16) -> list[dict[str, Any]]:
    """Rows whose labels follow from the image and the place in the text: pictures of one colour, all called red.

    The three types have different labels, so a model of one type is wrong as to the others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(images):
        color = list(COLORS)[index % 2]
        path = folder / f"{index}.png"
        red, green, blue = COLORS[color]
        Image.new("RGB", (60, 60), (red, green + index, blue)).save(path)
        truth = CONSISTENT if color == "red" else HALLUCINATED
        segments = [
            ("The whole image is red, ", (truth, ABSENT, CONSISTENT)),
            ("and that is all there is.", (ABSENT, HALLUCINATED, truth)),
        ]
        text = "".join(part for part, _ in segments)
        starts = [0, len(segments[0][0])]
        rows.append(
            {
                "sample_id": f"{index:04d}",
                "image": str(path),
                "image_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "prompt": "Describe this image in detail.",
                "response": text,
                "token_ids": None,
                "finish_reason": "stop",
                "model": "policy",
                "segments": [
                    {
                        "start": start,
                        "end": start + len(part),
                        "text": part,
                        "facts": [],
                        "labels": dict(zip(FACT_TYPES, labels, strict=True)),
                    }
                    for start, (part, labels) in zip(starts, segments, strict=True)
                ],
                "annotator": "{}",
            }
        )
    return rows


def silent(*_: Any) -> None:
    """A progress callback that shows nothing."""


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(CHECKPOINT, "float32")


@pytest.fixture(scope="module")
def responses(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingResponse]:
    return from_feedback(feedback_rows(tmp_path_factory.mktemp("images")))


@pytest.fixture(scope="module")
def data(backbone: Backbone, responses: list[TrainingResponse]) -> RewardData:
    return prepare_data(backbone, responses, 0.25, 0, silent)


def train(data: RewardData, fact_type: str = "existence", **changes: Any) -> tuple[RewardModel, dict[str, Any]]:
    model = RewardModel(load_backbone(CHECKPOINT, "float32"))
    options = OPTIONS.model_copy(update=changes)
    features = ImageFeatures(model.backbone)
    task = RewardTask(fact_type, (fact_type,), (fact_type,))
    return model, train_reward_model(model, task, data, features, options, 0, silent)[fact_type]


# Data


def test_rows_without_sub_sentences_are_left_out(tmp_path: Path) -> None:
    rows = feedback_rows(tmp_path, 3)
    rows[1]["segments"] = []
    assert len(from_feedback(rows)) == 2


@given(st.lists(st.integers(0, 12), min_size=2, max_size=40), st.floats(0.01, 0.99), st.integers(0, 3))
def test_no_image_is_trained_on_and_held_out(images: list[int], fraction: float, seed: int) -> None:
    responses = [TrainingResponse(f"{i}.png", str(i), str(n), ("A.",), {}) for n, i in enumerate(images)]
    if len(set(images)) < 2:
        return
    train, validation = split_by_image(responses, fraction, seed)
    assert {r.image for r in train}.isdisjoint({r.image for r in validation})
    assert Counter(r.prompt for r in train + validation) == Counter(r.prompt for r in responses)
    assert train and validation


def test_the_split_depends_on_the_seed_and_not_on_the_order(responses: list[TrainingResponse]) -> None:
    def held_out(given: list[TrainingResponse], seed: int) -> set[str]:
        return {response.image for response in split_by_image(given, 0.25, seed)[1]}

    assert held_out(responses, 0) == held_out(responses[::-1], 0) != held_out(responses, 1)


def test_a_single_image_cannot_be_split(responses: list[TrainingResponse]) -> None:
    with pytest.raises(UserError, match="label more images"):
        split_by_image(responses[:1], 0.25, 0)


def test_responses_that_are_too_long_are_counted_and_left_out(
    backbone: Backbone, responses: list[TrainingResponse]
) -> None:
    first = responses[0]
    long = TrainingResponse(first.image, first.image_sha256, first.prompt, ("A red ball. " * 600,), first.labels)
    counts = prepare_data(backbone, [long, *responses], 0.25, 0, silent).counts
    assert counts["train"]["too_long"] + counts["validation"]["too_long"] == 1
    assert counts["train"]["responses"] + counts["validation"]["responses"] == len(responses)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=90), st.integers(1, 9), st.integers(0, 5))
def test_batches_hold_each_example_once(lengths: list[int], batch_size: int, seed: int) -> None:
    batches = make_batches(lengths, batch_size, random.Random(seed))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert len(batches) == math.ceil(len(lengths) / batch_size)


def test_a_batch_holds_similar_lengths() -> None:
    lengths = [random.Random(i).randrange(1000) for i in range(400)]
    batches = [[lengths[index] for index in batch] for batch in make_batches(lengths, 8, random.Random(0))]
    assert np.mean([max(batch) - min(batch) for batch in batches]) < 150


def test_each_image_goes_through_the_vision_tower_once(backbone: Backbone, data: RewardData) -> None:
    features = ImageFeatures(backbone)
    paths = [example.image for example in data.train]
    first = features(paths + paths)
    torch.testing.assert_close(features(paths), first[: len(paths)], rtol=0, atol=0)
    assert features.encoded == len(set(paths))


def test_images_beyond_the_cache_are_encoded_again_with_the_same_features(backbone: Backbone, data: RewardData) -> None:
    paths = [example.image for example in data.train]
    torch.testing.assert_close(
        ImageFeatures(backbone, cache_bytes=0)(paths), ImageFeatures(backbone)(paths), rtol=0, atol=0
    )


# Loss and figures


def test_class_weights_are_inverse_frequencies_with_a_cap() -> None:
    np.testing.assert_allclose(class_weights([0] * 50 + [1] * 49 + [2]), [100 / 150, 100 / 147, CLASS_WEIGHT_CAP])


def test_balanced_classes_weigh_one() -> None:
    np.testing.assert_allclose(class_weights([0, 1, 2, 2, 1, 0]), 1)


def test_a_class_that_does_not_occur_has_a_finite_weight() -> None:
    assert np.isfinite(class_weights([0, 0, 1])).all()


def test_the_learning_rate_warms_up_to_its_peak_and_falls_to_nothing() -> None:
    factors = [learning_rate_factor(step, 100) for step in range(101)]
    assert factors[0] > 0 and max(factors) == 1 and factors[100] == pytest.approx(0)
    assert factors[3:] == sorted(factors[3:], reverse=True)


# Training


def test_a_tiny_training_set_is_learnt(data: RewardData) -> None:
    data = RewardData(data.train, data.train, data.counts)
    model, _ = train(data, learning_rate=5e-3, batch_size=4, epochs=8, patience=8)
    predicted = predict(model, "existence", data.train, ImageFeatures(model.backbone)).argmax(axis=1)
    assert predicted.tolist() == [label for example in data.train for label in example.labels["existence"]]


def test_the_best_epoch_is_restored(data: RewardData) -> None:
    model, metrics = train(data)
    probabilities = predict(model, "existence", data.validation, ImageFeatures(model.backbone))
    truth = [label for example in data.validation for label in example.labels["existence"]]
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (truth, probabilities.argmax(axis=1)), 1)
    assert metrics["confusion"] == confusion.tolist()
    assert metrics["balanced_accuracy"] == max(entry["balanced_accuracy"] for entry in metrics["curve"])
    assert metrics["curve"][metrics["best_epoch"] - 1]["balanced_accuracy"] == metrics["balanced_accuracy"]


def test_training_stops_when_nothing_improves(data: RewardData) -> None:
    _, metrics = train(data, learning_rate=1e-12, patience=2)
    assert len(metrics["curve"]) == 3


def test_equal_seeds_train_equal_models(data: RewardData) -> None:
    metrics = [train(data, epochs=2)[1] for _ in range(2)]
    assert metrics[0]["curve"] == metrics[1]["curve"]


def test_models_of_different_types_learn_their_own_labels(backbone: Backbone, data: RewardData) -> None:
    model = RewardModel(load_backbone(CHECKPOINT, "float32"))
    features = ImageFeatures(model.backbone)
    options = OPTIONS.model_copy(update={"epochs": 2})
    before = {}
    for fact_type in FACT_TYPES:
        task = RewardTask(fact_type, (fact_type,), (fact_type,))
        train_reward_model(model, task, data, features, options, 0, silent)
        before[fact_type] = predict(model, fact_type, data.validation, features)
    for fact_type in FACT_TYPES:  # training a type leaves the ones before as they were
        np.testing.assert_array_equal(predict(model, fact_type, data.validation, features), before[fact_type])
    assert not np.allclose(before["existence"], before["attribute"], atol=1e-2)


def test_the_backbone_stays_as_it_was(backbone: Backbone, data: RewardData) -> None:
    model, _ = train(data, epochs=1)
    trained = {name.replace(".base_layer", ""): value for name, value in model.backbone.model.state_dict().items()}
    for name, value in backbone.model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=0)


def test_progress_counts_every_training_response_of_every_epoch(data: RewardData) -> None:
    counts: list[int] = []
    model = RewardModel(load_backbone(CHECKPOINT, "float32"))
    options = OPTIONS.model_copy(update={"epochs": 2})
    task = RewardTask("existence", ("existence",), ("existence",))
    train_reward_model(
        model, task, data, ImageFeatures(model.backbone), options, 0, lambda count, note: counts.append(count)
    )
    assert sum(counts) == 2 * len(data.train)


def test_a_gradient_that_is_not_finite_ends_the_training(data: RewardData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_training, "class_weights", lambda labels: np.full(3, np.nan))
    with pytest.raises(RuntimeError, match="non-finite"):
        train(data, epochs=1)


def test_the_card_shows_the_measured_figures(data: RewardData) -> None:
    _, metrics = train(data, epochs=1)
    card = model_card(metrics, OPTIONS)
    for name in ("expected_calibration_error", "expected_calibration_error_scaled", "temperature"):
        assert f"| {metrics[name]:.3f} |" in card
    assert f"| AUROC, hallucinated against consistent | {metrics['auroc']['hallucinated_vs_consistent']:.3f} |" in card
    assert f"| balanced accuracy | {metrics['balanced_accuracy']:.3f} |" in card
    assert "| hallucinated | " in card


def test_smoothed_labels_keep_the_model_from_being_sure(data: RewardData) -> None:
    both = [train(data, epochs=3, label_smoothing=smoothing)[0] for smoothing in (0.0, 0.5)]
    sure, unsure = (predict(one, "existence", data.train, ImageFeatures(one.backbone)).max(axis=1) for one in both)
    assert unsure.mean() < sure.mean()


def test_the_size_of_a_forward_pass_does_not_change_the_steps(data: RewardData) -> None:
    losses = [train(data, epochs=1, micro_batch_size=size)[1]["curve"][0]["train_loss"] for size in (3, 8)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


class Interrupted(Exception):
    """Ends a training from outside."""


def interrupted_training(data: RewardData, folder: Path, task: RewardTask, after_epoch: int, seed: int) -> None:
    """Leave what a training leaves that dies in the epoch after ``after_epoch``."""
    model = RewardModel(load_backbone(CHECKPOINT, "float32"))
    options = OPTIONS.model_copy(update={"epochs": 3})

    def on_progress(count: int, note: str) -> None:
        if note.startswith(f"epoch {after_epoch + 1}/"):
            raise Interrupted

    checkpoint = TrainingCheckpoint(str(folder), task.name)
    with pytest.raises(Interrupted):
        train_reward_model(model, task, data, ImageFeatures(model.backbone), options, seed, on_progress, checkpoint)


# The job


def job_config(run_dir: Path, **rewards: Any) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": str(run_dir)},
            "ray": {"num_cpus": 2, "object_store_gib": 0.1},
            "data": {"source": "shapes"},
            "policy": {"model": CHECKPOINT},
            "label": {
                "extractor": {"base_url": "http://127.0.0.1:1/v1", "model": "m"},
                "verifier": {"model": CHECKPOINT},
            },
            "rewards": OPTIONS.model_copy(
                update={"epochs": 3, "cpus_per_worker": 0.5, "threads": 1, **rewards}
            ).model_dump(),
        }
    )


def publish_feedback(run_dir: Path, rows: list[dict[str, Any]]) -> storage.Stage:
    stage = storage.Stage(str(run_dir), "feedback", "f" * 16)
    stage.begin()
    storage.write_part(stage.partial, rows, FEEDBACK_SCHEMA)
    stage.publish({"rows": len(rows)})
    return stage


def test_the_job_needs_feedback(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"python -m jobs\.label"):
        train_rewards.run(job_config(tmp_path))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_job_trains_what_is_missing_under_ray_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], backbone: Backbone
) -> None:
    config = job_config(tmp_path / "run", num_workers=2)
    publish_feedback(tmp_path / "run", feedback_rows(tmp_path / "images"))
    finished = {"fact_type": "relation", "balanced_accuracy": 0.5, "from": "an interrupted run"}
    stage = train_rewards.stage_of(config)
    stage.begin()
    storage.write_json(storage.join(stage.partial, "relation", "metrics.json"), finished)
    data = prepare_data(backbone, from_feedback(feedback_rows(tmp_path / "images")), 0.25, 0, silent)
    interrupted_training(data, Path(stage.partial), reward_tasks("separate")[1], after_epoch=1, seed=1)
    begun = json.loads(Path(stage.partial, "attribute.checkpoint.json").read_text())["curve"]

    train_rewards.run(config)

    published = tmp_path / "run" / "rewards"
    metrics = {name: json.loads((published / name / "metrics.json").read_text()) for name in FACT_TYPES}
    assert metrics["relation"] == finished
    assert metrics["attribute"]["curve"][0] == {
        "epoch": 1,
        "train_loss": begun[0]["train_loss"],
        **begun[0]["heads"]["attribute"],
    }
    for name in ("existence", "attribute"):
        assert metrics[name]["fact_type"] == name and len(metrics[name]["curve"]) == 3
        assert sorted(path.name for path in (published / name).iterdir()) == [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            "head.safetensors",
            "metrics.json",
        ]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["feedback", "rewards"]
    output = capsys.readouterr().out
    assert "reward model existence: held-out balanced accuracy" in output
    assert "reward model attribute: 36/36 responses" in output

    # Two workers took the steps that one process takes.
    alone, _ = train(data, epochs=3)
    together = load_reward_model(backbone, {"existence": str(published / "existence")})
    expected, found = (
        predict(model, "existence", data.validation, ImageFeatures(model.backbone)) for model in (alone, together)
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)

    train_rewards.run(config)
    assert "is done" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_what_a_person_has_to_change_reaches_them_as_one_sentence(tmp_path: Path) -> None:
    publish_feedback(tmp_path / "run", feedback_rows(tmp_path / "images", images=1))
    with pytest.raises(Exception) as caught:
        train_rewards.run(job_config(tmp_path / "run"))
    error = find_user_error(caught.value)
    assert error is not None and "label more images" in str(error)
    assert not (tmp_path / "run" / "rewards").exists()
