"""The stages of a run, defined once: folder, the command that makes it, what it reads, and its fingerprint.

    images/ -> responses/ -> feedback/ -> rewards/<type>/ -> policy/ -> evaluation/ -> report/
                             + feedback_rejected/                       + benchmarks/<name>/
                             -> audit/, calibration/

A fingerprint covers what changes the content of a stage: settings, and what it reads. What does not change it is left
out: placement, numbers of workers, batch sizes. A finished stage of the same fingerprint is not run again.

What lies neither in the configuration nor in the manifest of an input is an argument (images, people's labels, versions
of reward models): this module reads nothing but manifests. Experiments chain the same functions over stand-ins for
those (``planned``), to tell which stages runs have in common before anything is there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from fgaif_ray.config import Config, Section, VerifierConfig
from fgaif_ray.errors import UserError
from fgaif_ray.fact_types import dump_fact_type, extracted, label_key
from fgaif_ray.records import fingerprint
from fgaif_ray.segments import ENGLISH
from fgaif_ray.storage.files import join
from fgaif_ray.storage.stage import Stage, read_manifest

IMAGES: Final = "images"
RESPONSES: Final = "responses"
FEEDBACK: Final = "feedback"
FEEDBACK_REJECTED: Final = "feedback_rejected"
AUDIT: Final = "audit"
CALIBRATION: Final = "calibration"
SECOND_CALIBRATION: Final = "calibration_second"
REWARDS: Final = "rewards"
POLICY: Final = "policy"
EVALUATION: Final = "evaluation"
BENCHMARKS: Final = "benchmarks"
REPORT: Final = "report"


@dataclass(frozen=True, slots=True)
class StageInfo:
    """Definition of a stage: its command and its inputs."""

    command: str
    """``python -m jobs.<command>``."""
    inputs: tuple[str, ...]
    """Stages that it reads."""


STAGES: Final[Mapping[str, StageInfo]] = {
    IMAGES: StageInfo("sample", ()),
    RESPONSES: StageInfo("sample", (IMAGES,)),
    FEEDBACK: StageInfo("label", (RESPONSES,)),
    FEEDBACK_REJECTED: StageInfo("label", (RESPONSES,)),
    AUDIT: StageInfo("audit", (FEEDBACK,)),
    CALIBRATION: StageInfo("calibrate", ()),
    SECOND_CALIBRATION: StageInfo("calibrate", ()),
    REWARDS: StageInfo("train_rewards", (FEEDBACK,)),
    POLICY: StageInfo("align", (IMAGES, REWARDS)),
    EVALUATION: StageInfo("evaluate", (IMAGES, POLICY)),
    BENCHMARKS: StageInfo("benchmark", (POLICY,)),
    REPORT: StageInfo("report", (FEEDBACK, REWARDS, POLICY, EVALUATION)),
}

EXTRACTION_KEYS: Final = frozenset({"model", "serve_model", "compact_json", "prompt", "mode", "max_tokens"})
"""The settings of ``label.extractor`` that change the facts. An endpoint may move between two runs."""
REWARD_PLACEMENT: Final = frozenset(
    {
        "num_workers",
        "resize_every_s",
        "worker_resource",
        "cpus_per_worker",
        "gpus_per_worker",
        "label_selector",
        "threads",
        "micro_batch_size",
    }
    | {"temperature_scaling"}  # a temperature is fitted in any case
)
"""Settings of ``rewards`` that change neither the data nor the steps of the optimiser."""
ALIGN_PLACEMENT: Final = frozenset(
    {
        "num_workers",
        "resize_every_s",
        "worker_resource",
        "cpus_per_worker",
        "gpus_per_worker",
        "label_selector",
        "threads",
        "sharding",
    }
    | {"checkpoint_every", "tracking", "guards"}  # a run that a guard has stopped goes on
)
"""Settings of ``align`` that do not change the policy."""
REWARDS_LATER: Final = ("planted_share", "fact_counts")
ALIGN_LATER: Final = ("algorithm", "evaluate_every", "evaluate_images", "best_by", "best_min_facts_share")
PPO_LATER: Final = ("clip_high", "ratio", "critic_warmup_steps", "target_kl", "loss_normalisation")
REWARD_LATER: Final = ("truncated", "scale", "scale_steps", "unit", "false_cost")
SAMPLE_LATER: Final = ("samples_per_prompt", "shared_prefixes")
"""Settings of ``rewards``, ``align``, ``align.ppo``, ``align.reward`` and ``sample`` that came after runs had been
made: at their defaults they do not count."""


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


def require(run: str, name: str) -> dict[str, Any]:
    """The manifest of a stage that another one needs.

    Raises:
        UserError: it has not been published; the message names the command that makes it.
    """
    manifest = read_manifest(run, name)
    if manifest is None:
        command = f"python -m jobs.{STAGES[name].command}"
        raise UserError(f"{join(run, name)} is not there: run `{command}` with this configuration first.")
    return manifest


def reward_folders(config: Config) -> dict[str, str]:
    """Where a run has its reward models, by fact type."""
    return {fact_type: join(config.run.dir, REWARDS, fact_type) for fact_type in config.run.type_names}


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
    sampling = config.sample.model_dump(
        include={"temperature", "top_p", "max_tokens", *_changed(config.sample, SAMPLE_LATER)}
    )
    policy = [config.policy.model, config.sample.engine.dtype]
    prompts = images.prompts_of(images.sample, config.data.prompts)
    provided = [images.provided_key] if images.provided else []
    cut = language_key(config) if config.sample.shared_prefixes else []
    seen = [*provided, *reading_key(config), *_limit_key(config), *cut]
    names = images.names_of(images.sample)
    key = fingerprint("sample-1", config.run.seed, sampling, policy, prompts, names, *seen)
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
        of_responses or _fingerprint_of(config, RESPONSES),
        _asked(config),
        {"model": verifier.model, "prompt": verifier.prompt, "threshold": sources.threshold},
        verifier.engine.dtype,
        *sources.overrides,
        *of_second,
        *label_key(config.run.types),
        *_several_key(config),
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
    source = of_responses or _fingerprint_of(config, RESPONSES)
    types = label_key(extracted(config.run.types))
    asked = [_asked(config), verdict_key(config.label.verifier)]
    cut = language_key(config)
    return fingerprint("verdicts-1", source, *asked, *types, *_several_key(config), *cut)


def at_default(section: Section, names: Sequence[str]) -> list[str]:
    """Those of a section's keys that have their defaults."""
    return [name for name in names if getattr(section, name) == type(section).model_fields[name].default]


def _changed(section: Section, names: Sequence[str]) -> set[str]:
    """Those of a section's keys that have not."""
    return {*names} - {*at_default(section, names)}


def reading_key(config: Config) -> list[dict[str, Any]]:
    """What a stage that shows images to a model depends on beside them: limits of pixels and variables of chat
    templates, if any is set.

    Stages that come after another one of this kind have it from there.
    """
    template = config.data.chat_template_kwargs
    return [part for part in (config.data.pixel_limits, {"chat_template_kwargs": template} if template else {}) if part]


def language_key(config: Config) -> list[dict[str, str]]:
    """What a stage depends on that cuts responses into segments, if they are not English.

    Stages that come after another one of this kind have it from there.
    """
    language = config.data.language
    return [{"language": language}] if language != ENGLISH else []


def _limit_key(config: Config) -> list[dict[str, int]]:
    """What decides which rows are rejected for their number of images, if it is set."""
    most = config.data.images_per_prompt
    return [{"images_per_prompt": most}] if most > 1 else []


def _blind_key(config: Config, *scopes: str) -> list[dict[str, str]]:
    """What a stage depends on whose models are shown other images."""
    hidden = config.data.blind.model_dump(include={*scopes})
    return [{f"blind_{scope}": mode} for scope, mode in sorted(hidden.items()) if mode != "none"]


def _several_key(config: Config) -> list[str]:
    """What verdicts depend on where prompts may have several images: how facts about several are asked."""
    return ["several-1"] if config.data.images_per_prompt > 1 else []


def verdict_key(verifier: VerifierConfig) -> str:
    """Equal for verifiers that give equal P(yes)."""
    return fingerprint(verifier.model_dump(include={"model", "prompt"}), verifier.engine.dtype)


def audit(config: Config, count: int, seed: int) -> Stage:
    """A page to judge ``count`` segments on.

    Raises:
        UserError: the responses have not been labelled.
    """
    key = fingerprint("audit-1", _fingerprint_of(config, FEEDBACK), count, seed)
    return Stage(config.run.dir, AUDIT, key)


def calibration(config: Config, which: str, verifier: VerifierConfig, threshold: Any) -> Stage:
    """Thresholds of a verifier; ``which`` is CALIBRATION or SECOND_CALIBRATION."""
    types = label_key(config.run.types)
    seen = [*reading_key(config), *_several_key(config)]
    key = fingerprint("calibration-1", verdict_key(verifier), threshold, *types, *seen)
    return Stage(config.run.dir, which, key)


def rewards(config: Config, of_feedback: str | None = None) -> Stage:
    """The reward models.

    Raises:
        UserError: the responses have not been labelled.
    """
    left_out = {*REWARD_PLACEMENT, *at_default(config.rewards, REWARDS_LATER)}
    settings = config.rewards.model_dump(mode="json", exclude=left_out)
    source = of_feedback or _fingerprint_of(config, FEEDBACK)
    seen = [*label_key(config.run.types), *_blind_key(config, "rewards")]
    return Stage(config.run.dir, REWARDS, fingerprint("rewards-2", settings, config.run.seed, source, *seen))


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
    left_out = {*ALIGN_PLACEMENT, "rollout", "dpo", *at_default(config.align, ALIGN_LATER)}
    align = config.align.model_dump(exclude=left_out)
    for part, later in (("ppo", PPO_LATER), ("reward", REWARD_LATER)):
        for name in at_default(getattr(config.align, part), later):
            del align[part][name]
    rollout = config.align.rollout.model_dump(include={"max_tokens", "temperature", "max_staleness"})
    prompts = images.prompts_of(images.align, config.data.prompts)
    versions = list(reward_versions)
    key = fingerprint(
        "align-1",
        config.run.seed,
        align,
        rollout,
        config.policy.model_dump(include={"model", "dtype"}),
        prompts,
        images.names_of(images.align),
        versions,
        *reading_key(config),
        *_limit_key(config),
        *_blind_key(config, "rewards", "policy"),
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
    align = config.align.model_dump(include={"algorithm", "steps", "lora", "dpo", "reward"})
    del align["dpo"]["micro_batch_size"]
    # Labels are certain, nobody has to be asked for them, and there is no spread of rewards over steps.
    for name in ("value", "truncated", "failure", "scale", "scale_steps"):
        del align["reward"][name]
    policy = config.policy.model_dump(include={"model", "dtype"})
    source = of_feedback or _fingerprint_of(config, FEEDBACK)
    seen = [*reading_key(config), *_blind_key(config, "policy")]
    key = fingerprint("preferences-1", config.run.seed, align, policy, source, *seen)
    return Stage(config.run.dir, POLICY, key)


def answers_before(config: Config, images: AskedImages) -> str:
    """Equal for evaluations whose answers of the policy before alignment are equal."""
    return fingerprint("before-1", *_evaluated(config, images))


def evaluation(config: Config, images: AskedImages, of_policy: str | None = None) -> Stage:
    """Answers before and after alignment, and what they measure.

    Raises:
        UserError: the policy has not been aligned.
    """
    source = of_policy or _fingerprint_of(config, POLICY)
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
    of_policy = _fingerprint_of(config, POLICY)
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
        [_fingerprint_of(config, name) for name in STAGES[REPORT].inputs],
        *([dump_fact_type(one) for one in config.run.types] if label_key(config.run.types) else ()),
    )
    return Stage(config.run.dir, REPORT, key)


_THRESHOLDS: Final = {"threshold": True, "calibration": True}
VERDICTS: Final = "verdicts"
"""What models say of facts, of which labels are made."""
BEFORE: Final = "before"
"""The answers of the policy before alignment."""
PLANNED: Final = (RESPONSES, VERDICTS, FEEDBACK, REWARDS, POLICY, BEFORE, EVALUATION)
"""What runs may have in common, in the order in which a run has it."""


def planned(config: Config) -> dict[str, str]:
    """A key for each of PLANNED before anything is there; equal where runs have the stage in common."""
    images = _PlannedImages(config)
    label = config.label
    settings = label.model_dump(
        mode="json", include={"human": True, "noise": True, "verifier": _THRESHOLDS, "second_verifier": _THRESHOLDS}
    )
    sources = LabelSources((settings,), None, None)
    keys = {RESPONSES: responses(config, images).fingerprint}
    keys[VERDICTS] = verdicts(config, keys[RESPONSES])
    keys[FEEDBACK] = feedback(config, sources, keys[RESPONSES]).fingerprint
    keys[REWARDS] = rewards(config, keys[FEEDBACK]).fingerprint
    scaled = config.rewards.temperature_scaling
    keys[POLICY] = policy(config, images, [keys[REWARDS], str(scaled)], keys[FEEDBACK]).fingerprint
    keys[BEFORE] = answers_before(config, images)
    keys[EVALUATION] = evaluation(config, images, keys[POLICY]).fingerprint
    return keys


class _PlannedImages:
    """Stands for images that are not drawn or read yet: the settings that decide which they are."""

    def __init__(self, config: Config) -> None:
        data = config.data
        trained = data.model_dump(mode="json", exclude={"prompts": True, "blind": True, "shapes": {"evaluate_split"}})
        self.sample = self.align = [trained, config.run.seed]
        evaluated = data.model_dump(mode="json", exclude={"prompts": True, "blind": True, "shapes": {"augmented"}})
        self.evaluate = [evaluated, config.run.seed]
        self.provided, self.provided_key = 0, ""

    def names_of(self, part: Any) -> Any:
        return part

    def prompts_of(self, part: Any, shared: Sequence[str]) -> Any:  # noqa: ARG002
        return shared


def _fingerprint_of(config: Config, name: str) -> str:
    found: str = require(config.run.dir, name)["fingerprint"]
    return found


def _asked(config: Config) -> dict[str, Any]:
    return config.label.extractor.model_dump(include=set(EXTRACTION_KEYS))


def _evaluated(config: Config, images: AskedImages) -> tuple[Any, ...]:
    return (
        config.run.seed,
        config.evaluate.model_dump(include={"max_tokens", "pope_questions_per_image"}),
        [config.policy.model, config.evaluate.engine.dtype],
        config.data.source,
        images.prompts_of(images.evaluate, config.data.prompts),
        images.names_of(images.evaluate),
        *reading_key(config),
        *_limit_key(config),
        *([{"sync": sync}] if (sync := config.evaluation_sync) != config.align.rollout.sync else ()),
    )
