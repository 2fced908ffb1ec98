"""The stages of a run, defined once: folder and fingerprint of each (``stage_names`` has commands and inputs).

A fingerprint covers what changes the content of a stage: settings (``stage_settings``), and what it reads. A finished
stage of the same fingerprint is not run again.

What lies neither in the configuration nor in the manifest of an input is an argument (images, people's labels, versions
of reward models): this module reads nothing but manifests. Experiments chain the same functions over stand-ins for
those (``planned_stages``), to tell which stages runs have in common before anything is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fgaif_ray.config import Config, VerifierConfig
from fgaif_ray.fact_types import dump_fact_type, extracted, label_key
from fgaif_ray.records import fingerprint
from fgaif_ray.storage.stage import Stage
from fgaif_ray.storage.stage_names import (
    AUDIT,
    BENCHMARKS,
    CALIBRATION,
    EVALUATION,
    FEEDBACK,
    FEEDBACK_REJECTED,
    IMAGES,
    POLICY,
    REPORT,
    RESPONSES,
    REWARDS,
    SECOND_CALIBRATION,
    STAGES,
    fingerprint_of,
    require,
    reward_folders,
)
from fgaif_ray.storage.stage_settings import (
    align_settings,
    blind_key,
    extraction_settings,
    language_key,
    limit_key,
    preference_settings,
    reading_key,
    reward_settings,
    sample_settings,
    several_key,
    verdict_key,
)

__all__ = [
    "AUDIT",
    "BENCHMARKS",
    "CALIBRATION",
    "EVALUATION",
    "FEEDBACK",
    "FEEDBACK_REJECTED",
    "IMAGES",
    "POLICY",
    "REPORT",
    "RESPONSES",
    "REWARDS",
    "SECOND_CALIBRATION",
    "STAGES",
    "AskedImages",
    "LabelSources",
    "answers_before",
    "audit",
    "augmented_shapes",
    "benchmark",
    "calibration",
    "evaluation",
    "feedback",
    "feedback_rejected",
    "images_of_rows",
    "images_of_shapes",
    "policy",
    "policy_of_preferences",
    "report",
    "require",
    "responses",
    "reward_benchmark",
    "reward_folders",
    "rewards",
    "split_shapes",
    "verdicts",
]


class AskedImages(Protocol):
    """The part of ``fgaif_ray.sources.ImageSets`` that fingerprints depend on."""

    @property
    def sample(self) -> Any: ...

    @property
    def align(self) -> Any: ...

    @property
    def evaluate(self) -> Any: ...

    @property
    def provided(self) -> int: ...

    @property
    def provided_key(self) -> str: ...

    def names_of(self, part: Any) -> Any: ...

    def prompts_of(self, part: Any, shared: Sequence[str]) -> Any: ...


@dataclass(frozen=True, slots=True)
class LabelSources:
    """Inputs of labels beside settings and verdicts (``fgaif_ray.feedback.label_sources`` makes it)."""

    overrides: tuple[Any, ...]
    """People's labels and noise; empty where nothing is replaced."""
    threshold: Any
    """Of the verifier, or of the facts that it is calibrated on."""
    second_threshold: Any
    """None without a second verifier."""


def images_of_rows(config: Config, source_key: str) -> Stage:
    """Images that stand in rows; ``source_key`` changes when what is read may have changed."""
    data = config.data
    sizes = (data.sample_images, data.align_images, data.evaluate_images)
    key = fingerprint("rows-1", data.columns.model_dump(), sizes, data.split, source_key)
    return Stage(config.run.dir, IMAGES, key)


def images_of_shapes(config: Config) -> Stage:
    """Scenes of the embedded world, which runs may share by ``data.path``."""
    data = config.data
    counts = (data.sample_images, data.align_images, data.evaluate_images)
    return Stage(data.path or config.run.dir, IMAGES, fingerprint("shapes-1", config.run.seed, *counts))


def augmented_shapes(config: Config) -> Stage:
    """The same scenes to train on, with a share of their images augmented."""
    data = config.data
    key = fingerprint(
        "shapes-augmented-1", config.run.seed, data.sample_images + data.align_images, data.shapes.augmented
    )
    return Stage(data.path or config.run.dir, f"{IMAGES}_augmented", key)


def split_shapes(config: Config) -> Stage:
    """Scenes of another split to evaluate on."""
    data, split = config.data, config.data.shapes.evaluate_split
    key = fingerprint("shapes-split-1", config.run.seed, split, data.evaluate_images)
    return Stage(data.path or config.run.dir, f"{IMAGES}_{split}", key)


def responses(config: Config, images: AskedImages) -> Stage:
    """What the policy says about the images of the sample set."""
    policy = [config.policy.model, config.sample.engine.dtype]
    prompts = images.prompts_of(images.sample, config.data.prompts)
    provided = [images.provided_key] if images.provided else []
    cut = language_key(config) if config.sample.shared_prefixes else []
    seen = [*provided, *reading_key(config), *limit_key(config), *cut]
    names = images.names_of(images.sample)
    key = fingerprint("sample-1", config.run.seed, sample_settings(config), policy, prompts, names, *seen)
    return Stage(config.run.dir, RESPONSES, key)


def feedback(config: Config, sources: LabelSources, of_responses: str | None = None) -> Stage:
    """The labelled responses; where models run, and how fast, does not change labels.

    Args:
        config: the configuration.
        sources: what labels depend on beside it.
        of_responses: fingerprint of the responses; None reads it.

    Raises:
        UserError: the responses have not been sampled.
    """
    label = config.label
    verifier, second = label.verifier, label.second_verifier
    of_second = () if second is None else (verdict_key(second), sources.second_threshold, label.disagreement)
    key = fingerprint(
        "label-1",
        of_responses or fingerprint_of(config, RESPONSES),
        extraction_settings(config),
        {"model": verifier.model, "prompt": verifier.prompt, "threshold": sources.threshold},
        verifier.engine.dtype,
        *sources.overrides,
        *of_second,
        *label_key(config.run.types),
        *several_key(config),
        *language_key(config),
    )
    return Stage(config.run.dir, FEEDBACK, key)


def feedback_rejected(config: Config, sources: LabelSources) -> Stage:
    """The responses that could not be labelled, published a moment before the others."""
    return Stage(config.run.dir, FEEDBACK_REJECTED, feedback(config, sources).fingerprint)


def verdicts(config: Config, of_responses: str | None = None) -> str:
    """Equal for labels over the same verdicts: those can be labelled again, and nothing has to be asked.

    Raises:
        UserError: the responses have not been sampled.
    """
    source = of_responses or fingerprint_of(config, RESPONSES)
    types = label_key(extracted(config.run.types))
    asked = [extraction_settings(config), verdict_key(config.label.verifier)]
    cut = language_key(config)
    return fingerprint("verdicts-1", source, *asked, *types, *several_key(config), *cut)


def audit(config: Config, count: int, seed: int) -> Stage:
    """A page to judge ``count`` segments on.

    Raises:
        UserError: the responses have not been labelled.
    """
    key = fingerprint("audit-1", fingerprint_of(config, FEEDBACK), count, seed)
    return Stage(config.run.dir, AUDIT, key)


def calibration(config: Config, which: str, verifier: VerifierConfig, threshold: Any) -> Stage:
    """Thresholds of a verifier; ``which`` is CALIBRATION or SECOND_CALIBRATION."""
    types = label_key(config.run.types)
    seen = [*reading_key(config), *several_key(config)]
    key = fingerprint("calibration-1", verdict_key(verifier), threshold, *types, *seen)
    return Stage(config.run.dir, which, key)


def rewards(config: Config, of_feedback: str | None = None) -> Stage:
    """The reward models.

    Raises:
        UserError: the responses have not been labelled.
    """
    source = of_feedback or fingerprint_of(config, FEEDBACK)
    seen = [*label_key(config.run.types), *blind_key(config, "rewards")]
    key = fingerprint("rewards-2", reward_settings(config), config.run.seed, source, *seen)
    return Stage(config.run.dir, REWARDS, key)


def policy(
    config: Config, images: AskedImages, reward_versions: Sequence[str], of_feedback: str | None = None
) -> Stage:
    """The aligned policy.

    Args:
        config: the configuration.
        images: of the run.
        reward_versions: version of the reward model of each fact type.
        of_feedback: fingerprint of the labels, which preferences are made of; None reads it.

    Raises:
        UserError: preferences are to be learnt from, and the responses have not been labelled.
    """
    if config.align.learns_from_preferences:
        return policy_of_preferences(config, of_feedback)
    rollout = config.align.rollout.model_dump(include={"max_tokens", "temperature", "max_staleness"})
    prompts = images.prompts_of(images.align, config.data.prompts)
    versions = list(reward_versions)
    key = fingerprint(
        "align-1",
        config.run.seed,
        align_settings(config),
        rollout,
        config.policy.model_dump(include={"model", "dtype"}),
        prompts,
        images.names_of(images.align),
        versions,
        *reading_key(config),
        *limit_key(config),
        *blind_key(config, "rewards", "policy"),
        *language_key(config),
    )
    return Stage(config.run.dir, POLICY, key)


def policy_of_preferences(config: Config, of_feedback: str | None = None) -> Stage:
    """A policy that has learnt from pairs of ``feedback/``: neither the images of PPO nor reward models count.

    Args:
        config: the configuration.
        of_feedback: fingerprint of the labels; None reads it.

    Raises:
        UserError: the responses have not been labelled.
    """
    policy = config.policy.model_dump(include={"model", "dtype"})
    source = of_feedback or fingerprint_of(config, FEEDBACK)
    seen = [*reading_key(config), *blind_key(config, "policy")]
    key = fingerprint("preferences-1", config.run.seed, preference_settings(config), policy, source, *seen)
    return Stage(config.run.dir, POLICY, key)


def answers_before(config: Config, images: AskedImages) -> str:
    """Equal for evaluations whose answers of the policy before alignment are equal."""
    return fingerprint("before-1", *_evaluated(config, images))


def evaluation(config: Config, images: AskedImages, of_policy: str | None = None) -> Stage:
    """Answers before and after alignment, and what they measure.

    Raises:
        UserError: the policy has not been aligned.
    """
    source = of_policy or fingerprint_of(config, POLICY)
    return Stage(config.run.dir, EVALUATION, fingerprint("evaluate-1", *_evaluated(config, images), source))


def benchmark(config: Config, name: str, questions: Sequence[Any], suffix: str, images: Any) -> Stage:
    """Answers to a public benchmark, before and after alignment.

    Args:
        config: the configuration.
        name: of the benchmark.
        questions: id, prompt and token limit of each.
        suffix: added to each prompt.
        images: the image files by name.

    Raises:
        UserError: the policy has not been aligned.
    """
    models = [config.policy.model, config.evaluate.engine.dtype]
    of_policy = fingerprint_of(config, POLICY)
    key = fingerprint("benchmark-1", questions, suffix, images, models, of_policy, *reading_key(config))
    return Stage(config.run.dir, f"{BENCHMARKS}/{name}", key)


def reward_benchmark(
    config: Config, name: str, responses: Sequence[Any], versions: Sequence[str], images: Any
) -> Stage:
    """Verdicts of the reward models on the responses of a public benchmark.

    Args:
        config: the configuration.
        name: of the benchmark.
        responses: id, prompt and text of each.
        versions: of the reward models.
        images: the image files by name.
    """
    models = [config.rewards.backbone, config.rewards.dtype, config.rewards.quantisation]
    key = fingerprint("reward-benchmark-1", responses, images, models, versions, *reading_key(config))
    return Stage(config.run.dir, f"{BENCHMARKS}/{name}", key)


def report(config: Config) -> Stage:
    """The judged examples of the report.

    Raises:
        UserError: a stage that the report shows is missing.
    """
    key = fingerprint(
        "report-2",
        config.run.seed,
        config.report.model_dump(),
        config.align.reward.model_dump(),
        [config.rewards.backbone, config.rewards.dtype, config.rewards.temperature_scaling],
        [fingerprint_of(config, name) for name in STAGES[REPORT].inputs],
        *([dump_fact_type(one) for one in config.run.types] if label_key(config.run.types) else ()),
    )
    return Stage(config.run.dir, REPORT, key)


def _evaluated(config: Config, images: AskedImages) -> tuple[Any, ...]:
    return (
        config.run.seed,
        config.evaluate.model_dump(include={"max_tokens", "pope_questions_per_image"}),
        [config.policy.model, config.evaluate.engine.dtype],
        config.data.source,
        images.prompts_of(images.evaluate, config.data.prompts),
        images.names_of(images.evaluate),
        *reading_key(config),
        *limit_key(config),
        *([{"sync": sync}] if (sync := config.evaluation_sync) != config.align.rollout.sync else ()),
    )
