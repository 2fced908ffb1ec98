"""Training of one reward model on labelled sub-sentences (FGAIF section 3.3).

Cross-entropy at the separators alone, weighted against the imbalance of the classes; AdamW with warm-up and
cosine decay, as LLaVA is tuned; early stopping on the balanced accuracy over held-out images. Inside a
``torch.distributed`` group every worker takes its share of each batch and gradients are summed, so any number
of workers follows the same steps.
"""

import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, distributed, nn

from fgaif_ray.config import RewardsConfig
from fgaif_ray.errors import UserError
from fgaif_ray.feedback.agreement import agreement
from fgaif_ray.models.reward_data import IGNORED, Example, ImageFeatures, RewardData, make_batches
from fgaif_ray.models.reward_model import SCORING_BATCH, RewardModel
from fgaif_ray.records import CLASS_NAMES

CLASS_WEIGHT_CAP: Final = 5.0
MICRO_BATCH: Final = 8
"""Responses of one forward and backward pass; gradients add up over the batch."""
WARMUP_SHARE: Final = 0.03
CALIBRATION_BINS: Final = 15

OnProgress = Callable[[int, str], None]
"""Called with the number of training responses gone through since the last call, and a note."""


def class_weights(labels: ArrayLike) -> NDArray[np.float64]:
    """Loss weight of each class: inverse frequency, ``labels / (3 * labels of the class)``, at most CLASS_WEIGHT_CAP.

    Balanced labels weigh 1. The cap keeps a handful of sub-sentences of a rare class from ruling the gradient.

    Args:
        labels: ``[segments]`` class codes.

    Returns:
        ``[3]``; a class that does not occur has the cap, and is never used.
    """
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=len(CLASS_NAMES))
    weights: NDArray[np.float64] = counts.sum() / (len(CLASS_NAMES) * np.maximum(counts, 1))
    return np.where(counts > 0, np.minimum(weights, CLASS_WEIGHT_CAP), CLASS_WEIGHT_CAP)


def expected_calibration_error(probabilities: NDArray[Any], labels: ArrayLike, bins: int = CALIBRATION_BINS) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of confidence (Guo et al. 2017, equation 3).

    Args:
        probabilities: ``[segments, classes]``.
        labels: ``[segments]`` class codes.
        bins: number of bins.

    Raises:
        ValueError: no segment, or another number of labels.
    """
    truth = np.asarray(labels)
    if len(truth) == 0 or len(truth) != len(probabilities):
        raise ValueError(f"need one label for each prediction, got {len(truth)} and {len(probabilities)}")
    confidence = probabilities.max(axis=1).astype(np.float64)  # [segments]
    correct = probabilities.argmax(axis=1) == truth  # [segments]
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of, weights=confidence - correct, minlength=bins)  # [bins] summed gaps
    return float(np.abs(gaps).sum() / len(truth))


def learning_rate_factor(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then half a cosine, zero after the last step."""
    warmup = math.ceil(WARMUP_SHARE * steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train_reward_model(
    model: RewardModel,
    fact_type: str,
    data: RewardData,
    features: ImageFeatures,
    options: RewardsConfig,
    seed: int,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Train one type's adapter and head; the best epoch's weights are in ``model`` afterwards.

    Args:
        model: gets the adapter and head of ``fact_type``.
        fact_type: a type that the model does not hold yet.
        data: examples.
        features: of the images of the examples.
        options: rank, rates, batch size, epochs, patience.
        seed: of the initial weights and of the order of the batches.
        on_progress: see ``OnProgress``.

    Returns:
        JSON-serialisable figures, measured on the held-out images with the best epoch's weights, and the
        curve of epochs.

    Raises:
        RuntimeError: a gradient is not finite.
    """
    started = time.monotonic()
    model.add(fact_type, options.lora, seed)
    parameters = model.trainable_parameters(fact_type)
    weights = class_weights(_known(data.train, fact_type))
    held_out = np.array([label for example in data.validation for label in example.labels[fact_type]])  # [segments]
    labelled = held_out != IGNORED
    truth = held_out[labelled].tolist()
    if not truth:
        raise UserError(
            f"The held-out images have no {fact_type} label to measure with (label.disagreement masks them all): label "
            "more images."
        )
    optimiser = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=0.0)
    steps = options.epochs * math.ceil(len(data.train) / options.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate_factor(step, steps))
    generator = random.Random(seed)
    lengths = [example.length for example in data.train]
    curve: list[dict[str, Any]] = []
    best: dict[str, Any] = {"epoch": 0, "balanced_accuracy": -1.0}
    best_state: list[Tensor] = []
    best_probabilities = np.zeros((0, len(CLASS_NAMES)), np.float32)
    for epoch in range(1, options.epochs + 1):
        losses = []
        for batch in make_batches(lengths, options.batch_size, generator):
            examples = [data.train[index] for index in batch]
            losses.append(_step(model, fact_type, examples, features, weights, parameters, options.max_grad_norm))
            optimiser.step()
            schedule.step()
            on_progress(len(batch), f"epoch {epoch}/{options.epochs}, loss {losses[-1]:.3f}")
        probabilities = predict(model, fact_type, data.validation, features)[labelled]  # [labelled segments, 3]
        entry = {
            "epoch": epoch,
            "train_loss": float(np.mean(losses)),
            "validation_loss": _weighted_loss(probabilities, truth, weights),
            "balanced_accuracy": agreement(truth, probabilities.argmax(axis=1)).balanced_accuracy,
        }
        curve.append(entry)
        on_progress(0, f"epoch {epoch}/{options.epochs}, held-out balanced accuracy {entry['balanced_accuracy']:.3f}")
        if entry["balanced_accuracy"] > best["balanced_accuracy"]:
            best, best_probabilities = entry, probabilities
            best_state = [parameter.detach().clone() for parameter in parameters]
        elif epoch - best["epoch"] >= options.patience:
            break
    with torch.no_grad():
        for parameter, value in zip(parameters, best_state, strict=True):
            parameter.copy_(value)
    return {
        "fact_type": fact_type,
        "backbone": model.backbone.path,
        **agreement(truth, best_probabilities.argmax(axis=1)).to_dict(),
        "majority_class_accuracy": float(np.bincount(truth).max() / len(truth)),
        "expected_calibration_error": expected_calibration_error(best_probabilities, truth),
        "train": dict(data.counts["train"]),
        "validation": dict(data.counts["validation"]),
        "class_weights": dict(zip(CLASS_NAMES, weights.tolist(), strict=True)),
        "best_epoch": best["epoch"],
        "curve": curve,
        "seed": seed,
        "seconds": time.monotonic() - started,
    }


def predict(
    model: RewardModel, fact_type: str, examples: Sequence[Example], features: ImageFeatures
) -> NDArray[np.float32]:
    """Class probabilities of all sub-sentences of ``examples`` in order, ``[segments, 3]``; workers share the work."""
    offsets = np.cumsum([0, *(len(example.encoded.separators) for example in examples)])
    order = sorted(range(len(examples)), key=lambda index: examples[index].length)
    rank, workers = _worker()
    result = torch.zeros(int(offsets[-1]), len(CLASS_NAMES), device=model.backbone.device)  # [segments, 3]
    with torch.no_grad():
        for start in range(rank * SCORING_BATCH, len(order), workers * SCORING_BATCH):
            batch = order[start : start + SCORING_BATCH]
            encoded = [examples[index].encoded for index in batch]
            logits = model.logits(fact_type, encoded, features([examples[index].image for index in batch]))
            places = np.concatenate([np.arange(offsets[index], offsets[index + 1]) for index in batch])
            result[torch.from_numpy(places).to(result.device)] = logits.softmax(dim=-1)
    _sum_over_workers(result)
    return result.cpu().numpy()


def _step(
    model: RewardModel,
    fact_type: str,
    examples: Sequence[Example],
    features: ImageFeatures,
    weights: NDArray[np.float64],
    parameters: Sequence[nn.Parameter],
    max_grad_norm: float,
) -> float:
    """Leave the clipped gradients of one batch in the parameters; returns the batch's weighted mean loss."""
    total = sum(weights[label] for label in _known(examples, fact_type)) or 1.0  # no label: no gradient
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    device = model.backbone.device
    class_weight = torch.tensor(weights, dtype=torch.float32, device=device)  # [3]
    loss_sum = torch.zeros((), device=device)
    rank, workers = _worker()
    own = examples[rank::workers]
    for start in range(0, len(own), MICRO_BATCH):
        part = own[start : start + MICRO_BATCH]
        labels = torch.tensor([label for example in part for label in example.labels[fact_type]], device=device)
        logits = model.logits(
            fact_type, [example.encoded for example in part], features([example.image for example in part])
        )  # [separators, 3]
        loss = (
            nn.functional.cross_entropy(logits, labels, weight=class_weight, reduction="sum", ignore_index=IGNORED)
            / total
        )
        loss.backward()
        loss_sum += loss.detach()
    if workers > 1:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([loss_sum.reshape(1), *(gradient.reshape(-1) for gradient in gradients)])
        _sum_over_workers(flat)
        loss_sum = flat[0]
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, summed in zip(gradients, flat[1:].split(sizes), strict=True):
            gradient.copy_(summed.view_as(gradient))
    nn.utils.clip_grad_norm_(parameters, max_grad_norm, error_if_nonfinite=True)
    return float(loss_sum)


def _known(examples: Sequence[Example], fact_type: str) -> list[int]:
    """The labels of examples that are to be learnt."""
    return [label for example in examples for label in example.labels[fact_type] if label != IGNORED]


def _weighted_loss(probabilities: NDArray[np.float32], truth: Sequence[int], weights: NDArray[np.float64]) -> float:
    labels = np.asarray(truth)
    losses = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float32).tiny))
    return float(np.average(losses, weights=weights[labels]))


def _worker() -> tuple[int, int]:
    """Rank and number of the workers."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _sum_over_workers(values: Tensor) -> None:
    if _worker()[1] > 1:
        distributed.all_reduce(values)


def model_card(metrics: dict[str, Any], options: RewardsConfig) -> str:
    """The README.md of a trained reward model, in Markdown, from the figures of ``train_reward_model``."""
    rows = "\n".join(
        f"| {name} | {_share(metrics['precision'][name])} | {_share(metrics['recall'][name])} "
        f"| {metrics['support'][name]} |"
        for name in CLASS_NAMES
    )
    train, validation = metrics["train"], metrics["validation"]
    return f"""---
base_model: {metrics["backbone"]}
library_name: peft
tags: [reward-model, hallucination, lora]
---
# Reward model: {metrics["fact_type"]}

Classifies each sub-sentence of a response to an image: does it hold facts of the type
*{metrics["fact_type"]}* at all, and are they right? A LoRA adapter (rank {options.lora.rank}, alpha
{options.lora.alpha}) on the language model of `{metrics["backbone"]}`, and a linear head (`head.safetensors`)
read at the separator after each sub-sentence.

Trained on AI feedback: {train["segments"]} sub-sentences of {train["responses"]} responses to
{train["images"]} images; best epoch {metrics["best_epoch"]} of {len(metrics["curve"])}, learning rate
{options.learning_rate:g}, batch size {options.batch_size}.

## Agreement with the feedback on held-out images

{validation["segments"]} sub-sentences of {validation["responses"]} responses to {validation["images"]} images.

| class | precision | recall | sub-sentences |
|---|---|---|---|
{rows}

Balanced accuracy {_share(metrics["balanced_accuracy"])}, accuracy {_share(metrics["accuracy"])} (always the
most frequent class: {_share(metrics["majority_class_accuracy"])}), expected calibration error
{metrics["expected_calibration_error"]:.3f}.

The feedback comes from models and has errors of its own: these figures say how well it is reproduced, not how
well the truth is known.
"""


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
