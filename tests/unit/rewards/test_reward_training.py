"""Reward models trained in this process: data, loss, figures and training."""

import dataclasses
import hashlib
import itertools
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.reward_helpers import predict
from support.reward_training import CHECKPOINT, OPTIONS, feedback_rows, job_config, silent, train

from fgaif_ray.errors import UserError
from fgaif_ray.records import FACT_TYPES, images_digest
from fgaif_ray.rewards import training as reward_training
from fgaif_ray.rewards.card import model_card
from fgaif_ray.rewards.data import (
    FeatureCache,
    RewardData,
    TrainingResponse,
    from_feedback,
    make_batches,
    prepare_data,
    split_by_image,
)
from fgaif_ray.rewards.kinds import RewardTask
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.rewards.model_files import load_reward_model, save_reward_model
from fgaif_ray.rewards.training import (
    learning_rate_factor,
    train_reward_model,
)
from fgaif_ray.vlm.backbone import Backbone, load_backbone
from jobs import train_rewards


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(CHECKPOINT, "float32")


@pytest.fixture(scope="module")
def responses(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingResponse]:
    return from_feedback(feedback_rows(tmp_path_factory.mktemp("images")), FACT_TYPES)


@pytest.fixture(scope="module")
def data(backbone: Backbone, responses: list[TrainingResponse]) -> RewardData:
    return prepare_data(backbone, responses, 0.25, 0, silent)


# Data


def test_rows_without_sub_sentences_are_left_out(tmp_path: Path) -> None:
    rows = feedback_rows(tmp_path, 3)
    rows[1] = dataclasses.replace(rows[1], segments=())
    assert len(from_feedback(rows, FACT_TYPES)) == 2


@given(st.lists(st.integers(0, 12), min_size=2, max_size=40), st.floats(0.01, 0.99), st.integers(0, 3))
def test_no_image_is_trained_on_and_held_out(images: list[int], fraction: float, seed: int) -> None:
    responses = [TrainingResponse((f"{i}.png",), str(i), str(n), ("A.",), {}) for n, i in enumerate(images)]
    if len(set(images)) < 2:
        return
    train, validation = split_by_image(responses, fraction, seed)
    assert {r.images for r in train}.isdisjoint({r.images for r in validation})
    assert Counter(r.prompt for r in train + validation) == Counter(r.prompt for r in responses)
    assert train and validation


PAIRS = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=2).map(tuple), min_size=2, max_size=20)


@given(PAIRS, st.floats(0.01, 0.99), st.integers(0, 3))
def test_no_image_of_several_is_trained_on_and_held_out(
    images: list[tuple[int, ...]], fraction: float, seed: int
) -> None:
    responses = [
        TrainingResponse(tuple(f"{one}.png" for one in some), str(some), str(number), ("A.",), {})
        for number, some in enumerate(images)
    ]
    try:
        train, validation = split_by_image(responses, fraction, seed)
    except UserError:
        return
    seen, held_out = ({image for response in part for image in response.images} for part in (train, validation))
    assert seen.isdisjoint(held_out)
    assert train and validation and len(train) + len(validation) == len(responses)


@pytest.mark.parametrize("alone", [True, False])
def test_a_copy_under_another_name_stays_with_the_images_beside_it(alone: bool, tmp_path: Path) -> None:
    """The copy stands alone, or among several."""
    contents = {"one": b"1", "two": b"2", "copy": b"1", "other": b"3"}
    for name, content in contents.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    shown = [("one", "two"), ("copy",) if alone else ("other", "copy")]
    shown += [(f"{number}",) for number in range(6)]
    for fraction, seed in itertools.product((0.1, 0.5, 0.9), range(8)):
        responses = []
        for names in shown:
            digests = [hashlib.sha256(contents.get(name, name.encode() * 9)).hexdigest() for name in names]
            paths = tuple(str(tmp_path / f"{name}.png") for name in names)
            responses.append(TrainingResponse(paths, images_digest(digests), "", ("A.",), {}))
        train, validation = split_by_image(responses, fraction, seed)
        assert len({response in train for response in responses[:2]}) == 1
        assert train and validation


def test_the_split_depends_on_the_seed_and_not_on_the_order(responses: list[TrainingResponse]) -> None:
    def held_out(given: list[TrainingResponse], seed: int) -> set[str]:
        return {response.images for response in split_by_image(given, 0.25, seed)[1]}

    assert held_out(responses, 0) == held_out(responses[::-1], 0) != held_out(responses, 1)


def test_a_single_image_cannot_be_split(responses: list[TrainingResponse]) -> None:
    with pytest.raises(UserError, match="label more images"):
        split_by_image(responses[:1], 0.25, 0)


def test_responses_that_are_too_long_are_counted_and_left_out(
    backbone: Backbone, responses: list[TrainingResponse]
) -> None:
    first = responses[0]
    long = TrainingResponse(first.images, first.image_sha256, first.prompt, ("A red ball. " * 600,), first.labels)
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
    features = FeatureCache(backbone)
    paths = [example.images for example in data.train]
    first = [one.planes for one in features(paths + paths)]
    torch.testing.assert_close([one.planes for one in features(paths)], first[: len(paths)], rtol=0, atol=0)
    assert features.encoded == len(set(paths))


def test_features_of_several_images_are_kept_by_all_of_them(backbone: Backbone, data: RewardData) -> None:
    (first,), (second,) = list(dict.fromkeys(example.images for example in data.train))[:2]
    features = FeatureCache(backbone)
    alone, together, swapped = features([(first,), (first, second), (second, first)])
    torch.testing.assert_close(together.planes[:, : alone.planes.shape[1]], alone.planes)
    assert not torch.equal(together.planes, swapped.planes)
    assert features.encoded == 3


def test_images_beyond_the_cache_are_encoded_again_with_the_same_features(backbone: Backbone, data: RewardData) -> None:
    paths = [example.images for example in data.train]
    again, kept = (
        [one.planes for one in cache(paths)] for cache in (FeatureCache(backbone, 0), FeatureCache(backbone))
    )
    torch.testing.assert_close(again, kept, rtol=0, atol=0)


# Loss and figures


def test_the_learning_rate_warms_up_to_its_peak_and_falls_to_nothing() -> None:
    factors = [learning_rate_factor(step, 100) for step in range(101)]
    assert factors[0] > 0 and max(factors) == 1 and factors[100] == pytest.approx(0)
    assert factors[3:] == sorted(factors[3:], reverse=True)


# Training


@pytest.mark.parametrize("kind", ["balanced", "none"])
def test_class_weights_reach_the_loss_and_leave_the_saved_head(data: RewardData, tmp_path: Path, kind: str) -> None:
    model, metrics = train(data, class_weights=kind)
    weights = np.array(list(metrics["class_weights"].values()))
    assert (kind == "none") == np.array_equal(weights, np.ones(3))
    predicted = predict(model, "existence", data.validation, FeatureCache(model.backbone))
    save_reward_model(model, "existence", tmp_path)
    loaded = load_reward_model(load_backbone(model.backbone.path, "float32"), {"existence": str(tmp_path)})
    again = predict(loaded, "existence", data.validation, FeatureCache(loaded.backbone))
    np.testing.assert_allclose(again, predicted, atol=1e-5)
    shift = model.heads["existence"].bias - loaded.heads["existence"].bias
    np.testing.assert_allclose(shift.detach().numpy(), np.log(weights), atol=1e-5)


def test_a_tiny_training_set_is_learnt(data: RewardData) -> None:
    data = RewardData(data.train, data.train, data.counts)
    model, _ = train(data, learning_rate=5e-3, batch_size=4, epochs=8, patience=8)
    predicted = predict(model, "existence", data.train, FeatureCache(model.backbone)).argmax(axis=1)
    assert predicted.tolist() == [label for example in data.train for label in example.labels["existence"]]


def test_the_best_epoch_is_restored(data: RewardData) -> None:
    model, metrics = train(data)
    probabilities = predict(model, "existence", data.validation, FeatureCache(model.backbone))
    truth = [label for example in data.validation for label in example.labels["existence"]]
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (truth, probabilities.argmax(axis=1)), 1)
    assert metrics["confusion"] == confusion.tolist()
    assert metrics["negative_log_likelihood"] == min(entry["validation_loss"] for entry in metrics["curve"])
    assert metrics["curve"][metrics["best_epoch"] - 1]["validation_loss"] == metrics["negative_log_likelihood"]


def test_training_stops_when_nothing_improves(data: RewardData) -> None:
    _, metrics = train(data, learning_rate=1e-12, patience=2)
    assert len(metrics["curve"]) == 3


def test_equal_seeds_train_equal_models(data: RewardData) -> None:
    metrics = [train(data, epochs=2)[1] for _ in range(2)]
    assert metrics[0]["curve"] == metrics[1]["curve"]


def test_models_of_different_types_learn_their_own_labels(backbone: Backbone, data: RewardData) -> None:
    model = RewardModel(load_backbone(CHECKPOINT, "float32"))
    features = FeatureCache(model.backbone)
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
        model, task, data, FeatureCache(model.backbone), options, 0, lambda count, note: counts.append(count)
    )
    assert sum(counts) == 2 * len(data.train)


def test_a_gradient_that_is_not_finite_ends_the_training(data: RewardData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_training, "loss_weights", lambda labels, kind: np.full(3, np.nan))
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
    sure, unsure = (predict(one, "existence", data.train, FeatureCache(one.backbone)).max(axis=1) for one in both)
    assert unsure.mean() < sure.mean()


def test_the_size_of_a_forward_pass_does_not_change_the_steps(data: RewardData) -> None:
    losses = [train(data, epochs=1, micro_batch_size=size)[1]["curve"][0]["train_loss"] for size in (3, 8)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_job_needs_feedback(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"python -m jobs\.label"):
        train_rewards.run(job_config(tmp_path))


def test_a_response_about_several_images_is_encoded_with_all(
    backbone: Backbone, responses: list[TrainingResponse]
) -> None:
    first, second = responses[0], next(one for one in responses if one.images != responses[0].images)
    both = dataclasses.replace(first, images=first.images + second.images, image_sha256="both")
    alone = [one for one in responses if one.images[0] not in both.images]
    data = prepare_data(backbone, [both, *alone], 0.25, 0, silent)
    tokens = {example.images: example.encoded.prompt.image_tokens for example in data.train + data.validation}
    assert tokens[both.images] == 2 * tokens[alone[0].images]
