"""The model card of a trained reward model, written from its measured metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

from fgaif_ray.config import RewardsConfig
from fgaif_ray.records import CLASS_NAMES
from fgaif_ray.statistics.intervals import wilson_interval


def model_card(metrics: Mapping[str, Any], options: RewardsConfig) -> str:
    """The README.md of a reward model, in Markdown.

    Args:
        metrics: of one fact type, as ``train_reward_model`` returns them.
        options: what it was trained with.
    """
    whole = metrics["granularity"] == "response"
    verdicts = "responses" if whole else "segments"
    rows = "\n".join(
        f"| {name} | {_figure(metrics['precision'][name])} | {_figure(metrics['recall'][name])} "
        f"| {_figure(metrics['auroc'][name])} | {metrics['support'][name]} | {metrics['class_weights'][name]:.2f} |"
        for name in CLASS_NAMES
    )
    epochs = "\n".join(
        f"| {one['epoch']} | {one['train_loss']:.3f} | {one['validation_loss']:.3f} "
        f"| {_figure(one['balanced_accuracy'])} |"
        for one in metrics["curve"]
    )
    train, validation = metrics["train"], metrics["validation"]
    smoothing = f", label smoothing {options.label_smoothing:g}" if options.label_smoothing else ""
    quantised = ", held in 4 bits" if options.quantisation == "4bit" else ""
    return f"""---
base_model: {metrics["backbone"]}
library_name: peft
tags: [reward-model, hallucination, lora]
---
# Reward model: {metrics["fact_type"]}

{_what_it_does(metrics)} A LoRA adapter (rank {options.lora.rank}, alpha {options.lora.alpha}) on the language model
of `{metrics["backbone"]}`{quantised}, and a linear head (`head.safetensors`) read at the separator after
{"the last segment" if whole else "each segment"}.

Trained on AI feedback: {train["segments"]} segments of {train["responses"]} responses to
{train["images"]} images{_source(metrics)}; best epoch {metrics["best_epoch"]} of {len(metrics["curve"])}, learning rate
{options.learning_rate:g}, batch size {options.batch_size}{smoothing}, seed {metrics["seed"]}.

{_domain(metrics)}## Agreement with the feedback on held-out images

{metrics["count"]} labelled {verdicts} of {validation["responses"]} responses to {validation["images"]} images. They
also chose the best epoch, so the metrics are a little optimistic.

| class | precision | recall | AUROC | {verdicts} | loss weight |
|---|---|---|---|---|---|
{rows}

| metric | value |
|---|---|
| balanced accuracy | {_figure(metrics["balanced_accuracy"])} |
| accuracy | {_figure(metrics["accuracy"])} |
| accuracy of always the most frequent class | {_figure(metrics["majority_class_accuracy"])} |
| AUROC, hallucinated against consistent | {_figure(metrics["auroc"]["hallucinated_vs_consistent"])} |
| expected calibration error | {_figure(metrics["expected_calibration_error"])} |
| expected calibration error after temperature scaling | {_figure(metrics["expected_calibration_error_scaled"])} |
| negative log-likelihood | {_figure(metrics["negative_log_likelihood"])} |
| negative log-likelihood after temperature scaling | {_figure(metrics["negative_log_likelihood_scaled"])} |
| temperature | {_figure(metrics["temperature"])} |
| mean reward, P(consistent) - P(hallucinated) | {_figure(metrics["signed_calibration"]["mean_reward"])} |
| mean of the labels, +1, -1 or 0 | {_figure(metrics["signed_calibration"]["mean_label"])} |

The temperature is fitted on all held-out images, and scores are divided by it where `rewards.temperature_scaling`
asks for it. The metrics after scaling use, for each image, a temperature that was fitted on other images.

{_noise(metrics)}{_deciles(metrics["signed_calibration"]["bins"])}

{_facts(metrics)}| epoch | training loss | held-out loss | held-out balanced accuracy |
|---|---|---|---|
{epochs}

The feedback comes from models and has errors of its own: these metrics say how well it is reproduced, not how
well the truth is known.
"""


def _source(metrics: Mapping[str, Any]) -> str:
    return f" ({metrics['source']})" if metrics.get("source") else ""


def _domain(metrics: Mapping[str, Any]) -> str:
    """How it tells images that are unlike those of training, if it does."""
    domain = metrics.get("domain")
    if domain is None:
        return ""
    alarms, held_out = domain["false_alarms"], domain["held_out"]
    low, high = wilson_interval(alarms / held_out, held_out) if held_out else (0.0, 1.0)
    interval = f"{low:.3f} to {high:.3f}"
    threshold = f"{domain['threshold']:.2f}"
    return f"""## Out of domain

It knows such images as these, and its probabilities mean little for others. An image whose features are further than
{threshold} from those of the {domain["images"]} training images is marked `out_of_domain`. False alarms: {alarms} of
{held_out} held-out images, {_figure(domain["false_alarm_rate"])} (95 % interval {interval}). How many images of another
kind are marked depends on the kind, and is not measured.

"""


def _noise(metrics: Mapping[str, Any]) -> str:
    """The shares of wrong labels that its verdicts are without, if they are."""
    noise = metrics.get("label_noise")
    if noise is None:
        return ""
    consistent, hallucinated = _figure(noise["of_consistent"]), _figure(noise["of_hallucinated"])
    return f"""Its verdicts are about the truth, as far as labels tell it: {consistent} of consistent segments are taken
to be labelled hallucinated, {hallucinated} of hallucinated ones consistent (`rewards.label_noise: taken_out`). The
metrics here are about the labels, before that.

"""


def _deciles(bins: Sequence[Mapping[str, float]]) -> str:
    """What verdicts pay beside what their labels are worth, by tenths of the verdicts."""
    rows = (f"| {one['count']} | {one['reward']:+.3f} | {one['label']:+.3f} |" for one in bins)
    return "\n".join(["| verdicts, by what they pay | mean reward | mean label |", "|---|---|---|", *rows])


def _facts(metrics: Mapping[str, Any]) -> str:
    """What the estimates of the number of facts are worth, if there are any."""
    if "fact_counts" not in metrics:
        return ""
    titles = {"facts": "facts in a segment that has any", "false_facts": "false ones where one is"}
    rows = "\n".join(
        f"| {titles[name]} | {one['segments']} | {_figure(one['mean'])} | {_figure(one['mean_predicted'])} "
        f"| {_figure(one['error'])} | {_figure(one['deviation'])} |"
        for name, one in metrics["fact_counts"].items()
    )
    return f"""It also estimates how many facts of its type a segment states, for `align.reward.unit: fact`:

| estimate | segments | mean | mean estimate | root mean square error | of the mean |
|---|---|---|---|---|---|
{rows}

"""


def _what_it_does(metrics: Mapping[str, Any]) -> str:
    fact_type, others = metrics["fact_type"], [name for name in metrics["trained_with"] if name != metrics["fact_type"]]
    if metrics["granularity"] == "response":
        return (
            "Classifies a whole response to an image: does it state facts at all, and is one of them hallucinated? One "
            f"and the same model is in the folders of {', '.join(metrics['trained_with'])}."
        )
    shared = f" Trained together with {' and '.join(others)}, on one adapter, a head each." if others else ""
    return (
        "Classifies each segment of a response to an image: does it hold facts of the type "
        f"*{fact_type}* at all, and are they right?{shared}"
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
