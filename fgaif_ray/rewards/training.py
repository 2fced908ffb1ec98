"""Training of reward models on labelled segments (FGAIF section 3.3).

The loss is cross-entropy at the separators only, weighted against the imbalance of the classes; AdamW with warm-up and
cosine decay, as LLaVA is tuned; early stopping on the loss over held-out images, since what a verdict pays is a
probability, and the likeliest class says little where one class is rare. Heads on one adapter are trained together, on
the mean of their losses. Inside a ``torch.distributed`` group every worker takes its share of each batch and gradients
are summed, so any number of workers follows the same steps.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from fgaif_ray.config import RewardsConfig
from fgaif_ray.errors import UserError
from fgaif_ray.records import CLASS_NAMES, CONSISTENT, HALLUCINATED
from fgaif_ray.rewards.checkpoint import TrainingCheckpoint, TrainingState
from fgaif_ray.rewards.class_balance import loss_weights
from fgaif_ray.rewards.data import Example, FeatureCache, RewardData, make_batches
from fgaif_ray.rewards.fact_counts import TARGETS, Moments, fit_readout
from fgaif_ray.rewards.kinds import COARSE, IGNORED, RewardTask
from fgaif_ray.rewards.label_noise import estimate_label_noise
from fgaif_ray.rewards.metrics import held_out_figures, negative_log_likelihood
from fgaif_ray.rewards.model import SCORING_BATCH, RewardModel
from fgaif_ray.statistics.agreement import agreement
from fgaif_ray.vlm.schedule import learning_rate_scale

WARMUP_SHARE: Final = 0.03

OnProgress = Callable[[int, str], None]
"""Callback with the number of training responses processed since the last call, and a note."""


def learning_rate_factor(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: linear warm-up, then half a cosine, zero after the last step."""
    warmup = math.ceil(WARMUP_SHARE * steps)
    return learning_rate_scale(step, schedule="cosine", warmup_steps=warmup, total_steps=steps)


@dataclass(frozen=True)
class _HeldOut:
    """The held-out verdicts with a known label, on which a head is measured."""

    known: NDArray[np.bool_]
    """``[verdicts]``"""
    truth: list[int]
    """``[known verdicts]`` class codes."""
    images: list[str]
    """``[known verdicts]`` digest of the image that each is about."""


def train_reward_model(
    model: RewardModel,
    task: RewardTask,
    data: RewardData,
    features: FeatureCache,
    options: RewardsConfig,
    seed: int,
    on_progress: OnProgress,
    checkpoint: TrainingCheckpoint | None = None,
) -> dict[str, dict[str, Any]]:
    """Train one adapter and its heads; the best epoch's weights and temperatures are in ``model`` afterwards.

    Args:
        model: gets the adapter and the heads of the task.
        task: its heads are new to the model.
        data: examples.
        features: of the images of the examples.
        options: rank, rates, batch size, epochs, patience.
        seed: of the initial weights and of the order of the batches.
        on_progress: see ``OnProgress``.
        checkpoint: is written after each epoch by the first worker; training goes on from an existing one.

    Returns:
        For each fact type of the task, JSON-serialisable metrics, measured on the held-out images with the best
        epoch's weights, and the curve of epochs.

    Raises:
        UserError: there is no label to learn from, or a head has no held-out one.
        RuntimeError: a gradient is not finite.
    """
    started = time.monotonic()
    model.add_adapter(task.name, task.heads, options.lora, seed, task.granularity)
    parameters = model.trainable_parameters(task.heads[0])
    train = examples_of(task, data)
    weights = {head: loss_weights(_known(train, head), options.class_weights) for head in task.heads}
    model.class_weights |= weights
    held_out = {head: _held_out(data.validation, head) for head in task.heads}
    optimiser = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=0.0)
    steps_per_epoch = math.ceil(len(train) / options.batch_size)
    lengths = [example.length for example in train]
    state = checkpoint.load(parameters, optimiser) if checkpoint is not None else TrainingState()
    generator = random.Random(seed)
    for _ in range(state.epoch):  # restores the generator's state
        make_batches(lengths, options.batch_size, generator)
    if state.epoch:
        on_progress(state.epoch * len(train), f"goes on after epoch {state.epoch}")
    spent = state.seconds
    while state.epoch < options.epochs and state.epoch - state.best_epoch < options.patience:
        losses = []
        step = state.epoch * steps_per_epoch
        state.epoch += 1
        of_all = f"epoch {state.epoch}/{options.epochs}"
        for batch in make_batches(lengths, options.batch_size, generator):
            examples = [train[index] for index in batch]
            losses.append(_step(model, task, examples, features, weights, parameters, options))
            for group in optimiser.param_groups:
                group["lr"] = options.learning_rate * learning_rate_factor(step, options.epochs * steps_per_epoch)
            optimiser.step()
            step += 1
            on_progress(len(batch), f"{of_all}, loss {losses[-1]:.3f}")
        predicted = predict_heads(model, task.heads, data.validation, features)
        probabilities = {head: predicted[head][held_out[head].known] for head in task.heads}
        entry = _entry(probabilities, held_out)
        loss = float(np.mean([found["validation_loss"] for found in entry.values()]))
        state.curve.append({"epoch": state.epoch, "train_loss": float(np.mean(losses)), "heads": entry})
        on_progress(0, f"{of_all}, held-out loss {loss:.3f}")
        if state.best_loss is None or loss < state.best_loss:
            state.best_epoch, state.best_loss, state.best_probabilities = state.epoch, loss, probabilities
            state.best_parameters = [parameter.detach().clone() for parameter in parameters]
        state.seconds = spent + time.monotonic() - started
        if checkpoint is not None and _worker()[0] == 0:
            checkpoint.save(state, parameters, optimiser)
    with torch.no_grad():
        for parameter, value in zip(parameters, state.best_parameters, strict=True):
            parameter.copy_(value)
    shared = {
        "trained_with": list(task.fact_types),
        "granularity": task.granularity,
        "backbone": model.backbone.path,
        "train": dict(data.counts["train"]),
        "validation": dict(data.counts["validation"]),
        "best_epoch": state.best_epoch,
        "seed": seed,
        "seconds": state.seconds,
    }
    found = {
        head: held_out_figures(state.best_probabilities[head], held_out[head].truth, held_out[head].images)
        for head in task.heads
    }
    if options.fact_counts:
        _count_facts(model, task.heads, train, data.validation, features, found)
    if options.label_noise == "taken_out":
        for head, figures in found.items():
            noise = estimate_label_noise(state.best_probabilities[head], held_out[head].truth)
            model.label_noise[head], figures["label_noise"] = noise, noise.to_dict()
    for head, figures in found.items():
        model.temperatures[head] = figures["temperature"]
        figures["class_weights"] = dict(zip(CLASS_NAMES, weights[head].tolist(), strict=True))
        figures["curve"] = [
            {"epoch": entry["epoch"], "train_loss": entry["train_loss"], **entry["heads"][head]}
            for entry in state.curve
        ]
    return {name: {"fact_type": name, **shared, **found[task.head_of(name)]} for name in task.fact_types}


def examples_of(task: RewardTask, data: RewardData) -> list[Example]:
    """The examples to train on that have a label for one of the task's heads.

    Raises:
        UserError: there are none.
    """
    found = [one for one in data.train if any(_known([one], head) for head in task.heads)]
    if not found:
        raise UserError(
            f"The training images have no {' or '.join(task.heads)} label to learn from (label.disagreement masks them "
            "all): label more images."
        )
    return found


def predict_heads(
    model: RewardModel, heads: Sequence[str], examples: Sequence[Example], features: FeatureCache
) -> dict[str, NDArray[np.float32]]:
    """Compute class probabilities of all verdicts on ``examples`` in order, without temperature, on all workers.

    Returns:
        Per head ``[verdicts, 3]``, a verdict for each segment, or for each response.
    """
    whole = {head: model.granularity(head) == "response" for head in heads}
    offsets = {
        head: np.cumsum([0, *(1 if whole[head] else len(example.encoded.separators) for example in examples)])
        for head in heads
    }
    order = sorted(range(len(examples)), key=lambda index: examples[index].length)
    rank, workers = _worker()
    device = model.backbone.device
    result = {head: torch.zeros(int(offsets[head][-1]), len(CLASS_NAMES), device=device) for head in heads}
    with torch.no_grad():
        for start in range(rank * SCORING_BATCH, len(order), workers * SCORING_BATCH):
            batch = order[start : start + SCORING_BATCH]
            encoded = [examples[index].encoded for index in batch]
            found = model.logits_of(heads, encoded, features([examples[index].images for index in batch]))
            for head, logits in found.items():
                ends = offsets[head]
                places = np.concatenate([np.arange(ends[index], ends[index + 1]) for index in batch])
                result[head][torch.from_numpy(places).to(device)] = model.probabilities(head, logits)
    for values in result.values():
        _sum_over_workers(values)
    return {head: values.cpu().numpy() for head, values in result.items()}


def _count_facts(
    model: RewardModel,
    heads: Sequence[str],
    train: Sequence[Example],
    validation: Sequence[Example],
    features: FeatureCache,
    figures: Mapping[str, dict[str, Any]],
) -> None:
    """Give the heads readouts of facts, on all workers, and their metrics what these are worth."""
    seen, held_out = (_fact_moments(model, heads, part, features) for part in (train, validation))
    for head in heads:
        weights, figures[head]["fact_counts"] = fit_readout(seen[head], held_out[head])
        model.set_fact_counts(head, weights)


@torch.no_grad()
def _fact_moments(
    model: RewardModel, heads: Sequence[str], examples: Sequence[Example], features: FeatureCache
) -> dict[str, dict[str, Moments]]:
    """Sum the states of segments with facts over all workers, by head and by what is counted."""
    hidden, device = model.backbone.hidden_size, model.backbone.device
    found = {head: {target: Moments.empty(hidden, device) for target in TARGETS} for head in heads}
    order = sorted(range(len(examples)), key=lambda index: examples[index].length)
    rank, workers = _worker()
    for start in range(rank * SCORING_BATCH, len(order), workers * SCORING_BATCH):
        batch = [examples[index] for index in order[start : start + SCORING_BATCH]]
        images = features([example.images for example in batch])
        for head, states in model.states_of(heads, [example.encoded for example in batch], images, heads).items():
            assert states.sums is not None
            labels = torch.tensor([label for example in batch for label in example.labels_of(head)], device=device)
            counts = torch.tensor([facts for example in batch for facts in example.facts_of(head)], device=device)
            false = labels == HALLUCINATED  # [segments]
            for target, column, chosen in zip(TARGETS, (0, 1), ((labels == CONSISTENT) | false, false), strict=True):
                found[head][target].add(states.sums[chosen], counts[chosen, column])
    for by_target in found.values():
        for moments in by_target.values():
            for sums in (moments.outer, moments.cross, moments.square):
                _sum_over_workers(sums)
    return found


def _held_out(examples: Sequence[Example], head: str) -> _HeldOut:
    """Collect the verdicts on which a head is measured.

    Raises:
        UserError: none of its labels is known.
    """
    verdicts = [(label, example.image_sha256) for example in examples for label in example.labels_of(head)]
    known = [label != IGNORED for label, _ in verdicts]
    if not any(known):
        name = "label of a whole response" if head == COARSE else f"{head} label"
        raise UserError(
            f"The held-out images have no {name} to measure with (label.disagreement masks them all): label "
            "more images."
        )
    chosen = [verdict for verdict, is_known in zip(verdicts, known, strict=True) if is_known]
    return _HeldOut(np.array(known), [label for label, _ in chosen], [image for _, image in chosen])


def _entry(
    probabilities: Mapping[str, NDArray[np.float32]], held_out: Mapping[str, _HeldOut]
) -> dict[str, dict[str, Any]]:
    """Return an epoch's held-out metrics by head."""
    return {
        head: {
            "validation_loss": negative_log_likelihood(found, held_out[head].truth),
            "balanced_accuracy": agreement(held_out[head].truth, found.argmax(axis=1)).balanced_accuracy,
        }
        for head, found in probabilities.items()
    }


def _step(
    model: RewardModel,
    task: RewardTask,
    examples: Sequence[Example],
    features: FeatureCache,
    weights: Mapping[str, NDArray[np.float64]],
    parameters: Sequence[nn.Parameter],
    options: RewardsConfig,
) -> float:
    """Compute the clipped gradients of one batch; returns the batch's loss, the mean over heads."""
    # A batch without a label has no gradient.
    totals = {head: sum(weights[head][label] for label in _known(examples, head)) or 1.0 for head in task.heads}
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    device = model.backbone.device
    class_weight = {h: torch.tensor(weights[h], dtype=torch.float32, device=device) for h in task.heads}  # [3] each
    loss_sum = torch.zeros((), device=device)
    rank, workers = _worker()
    own = examples[rank::workers]
    for start in range(0, len(own), options.micro_batch_size):
        part = own[start : start + options.micro_batch_size]
        found = model.logits_of(
            task.heads, [example.encoded for example in part], features([example.images for example in part])
        )
        loss = torch.zeros((), device=device)
        for head, logits in found.items():  # logits: [verdicts, 3]
            labels = torch.tensor([label for example in part for label in example.labels_of(head)], device=device)
            loss = loss + nn.functional.cross_entropy(
                logits,
                labels,
                weight=class_weight[head],
                reduction="sum",
                ignore_index=IGNORED,
                label_smoothing=options.label_smoothing,
            ) / (totals[head] * len(task.heads))
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
    nn.utils.clip_grad_norm_(parameters, options.max_grad_norm, error_if_nonfinite=True)
    return float(loss_sum)


def _known(examples: Sequence[Example], head: str) -> list[int]:
    """Return the labels of examples that are to be learnt."""
    return [label for example in examples for label in example.labels_of(head) if label != IGNORED]


def _worker() -> tuple[int, int]:
    """Return rank and number of the workers."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _sum_over_workers(values: Tensor) -> None:
    if _worker()[1] > 1:
        distributed.all_reduce(values)
