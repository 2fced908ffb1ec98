"""The whole tree, read from YAML with ``--set section.key=value`` on top."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from fgaif_ray.config.align import AlignConfig
from fgaif_ray.config.base import EngineConfig, PolicyConfig, RayConfig, RunConfig, Section
from fgaif_ray.config.benchmarks import BenchmarksConfig, JudgeConfig
from fgaif_ray.config.data import DataConfig, SampleConfig
from fgaif_ray.config.guard import ChatGuardConfig, GuardTree
from fgaif_ray.config.label import LabelConfig
from fgaif_ray.config.mistakes import describe_mistakes
from fgaif_ray.config.per_type import check_names, complete
from fgaif_ray.config.rewards import RewardsConfig, ServeConfig
from fgaif_ray.config.yaml_file import read_tree
from fgaif_ray.errors import UserError
from fgaif_ray.records import FACT_TYPES


class EvaluateConfig(Section):
    """Evaluation before and after alignment."""

    max_tokens: int = Field(default=896, ge=1)
    """The most tokens of an answer."""
    pope_questions_per_image: int = Field(default=6, ge=2)
    """Half of them about objects that are there; taken where the truth of the images is known."""
    batch_size: int = Field(default=64, ge=1)
    """Images that an engine is given at a time."""
    engine: EngineConfig = EngineConfig()
    sync: Literal["adapter", "merged"] | None = None
    """How the aligned policy reaches the engine. None: as an adapter where merging would round it, in any ``dtype`` but
    float32, if vLLM serves adapters for its family; else as ``align.rollout.sync`` says."""
    benchmarks: BenchmarksConfig = BenchmarksConfig()
    judge: JudgeConfig | None = None
    """Rates answers to MMHal-Bench and LLaVA-Bench."""


class ReportConfig(Section):
    """The HTML report."""

    examples: int = Field(default=12, ge=1)
    """Images that are drawn."""
    extremes: int = Field(default=4, ge=0)
    """Further images: those that alignment has improved most, and as many of the worst."""
    title: str = "FGAIF run"
    """Heading of the page."""


class Config(Section):
    """Everything a run needs."""

    run: RunConfig
    ray: RayConfig = RayConfig()
    data: DataConfig
    policy: PolicyConfig
    sample: SampleConfig = SampleConfig()
    label: LabelConfig
    rewards: RewardsConfig
    serve: ServeConfig = ServeConfig()
    align: AlignConfig = AlignConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
    guard: ChatGuardConfig = ChatGuardConfig()

    @property
    def evaluation_sync(self) -> Literal["adapter", "merged"]:
        """How evaluation asks for the aligned policy (see ``evaluate.sync``)."""
        if self.evaluate.sync is not None:
            return self.evaluate.sync
        return self.align.rollout.sync if self.evaluate.engine.dtype == "float32" else "adapter"

    @model_validator(mode="before")
    @classmethod
    def _complete_settings_by_type(cls, tree: Any) -> Any:
        """A run of other types than the default ones has settings by type for these."""
        if not isinstance(tree, dict) or not isinstance(tree.get("run"), dict):
            return tree
        given = tree["run"].get("fact_types", FACT_TYPES)
        try:
            run = RunConfig(dir=".", fact_types=given)
        except ValidationError:
            return tree  # the section itself says what is wrong
        return complete(tree | {"run": tree["run"] | {"fact_types": run.fact_types}}, run.type_names)

    @model_validator(mode="after")
    def _settings_by_type_name_the_types(self) -> Self:
        names = self.run.type_names
        settings: dict[str, Mapping[str, Any]] = {
            "align.reward.weights": self.align.reward.weights,
            "label.verifier.threshold": self.label.verifier.threshold,
        }
        if self.label.second_verifier is not None:
            settings["label.second_verifier.threshold"] = self.label.second_verifier.threshold
        settings["label.noise"] = dict.fromkeys(names) | self.label.noise.by_type
        human = self.label.human
        settings["label.human.types"] = dict.fromkeys(names) | dict.fromkeys((human and human.types) or ())
        check_names(settings, names)
        critic = self.align.critic_from_reward
        if critic is not None and critic not in names:
            raise ValueError(f"align.critic_from_reward: {critic} is not one of run.fact_types ({', '.join(names)})")
        return self

    @model_validator(mode="after")
    def _preferences_have_something_to_compare(self) -> Self:
        provided = self.data.source in ("rows", "dataset")  # which may bring several responses to a prompt
        if self.align.learns_from_preferences and self.sample.samples_per_prompt < 2 and not provided:
            raise ValueError(
                f"align.algorithm={self.align.algorithm} compares responses to one image and prompt: set "
                "sample.samples_per_prompt to 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _coarse_verdicts_are_paid_once(self) -> Self:
        if self.rewards.kind == "coarse" and self.align.reward.normalise_by_segments:
            raise ValueError(
                "rewards.kind=coarse gives one verdict per response already, which "
                "align.reward.normalise_by_segments would divide by the number of segments: leave it at false"
            )
        return self

    @model_validator(mode="after")
    def _the_best_policy_can_be_told(self) -> Self:
        metric = self.align.best_by
        if metric is None:
            return self
        if metric.startswith("truth/") and self.data.source != "shapes":
            raise ValueError(f"align.best_by={metric}: the truth is known of data.source=shapes alone")
        about, _, what = metric.rpartition("/")
        names = {"reward": ("total", *self.run.type_names), "truth/hallucination": ("overall", *FACT_TYPES)}
        names["hallucination"] = ("overall", *self.run.type_names)
        if about in names and what not in names[about]:
            raise ValueError(f"align.best_by={metric}: there are {', '.join(f'{about}/{one}' for one in names[about])}")
        return self

    @model_validator(mode="after")
    def _facts_are_counted_where_they_are_paid(self) -> Self:
        if self.rewards.kind == "coarse" and self.rewards.fact_counts:
            raise ValueError(
                "rewards.kind=coarse judges no segment whose facts could be counted: leave rewards.fact_counts at false"
            )
        if self.align.reward.unit == "fact" and not self.rewards.fact_counts:
            raise ValueError(
                "align.reward.unit=fact pays by the number of facts in a segment, which reward models estimate with "
                "rewards.fact_counts=true: set it, and train them again"
            )
        return self


def _assign(tree: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise UserError(f"--set takes section.key=value, not {override!r}.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override!r}: the value is not valid YAML; quote it.") from error
    node = tree
    for key in keys[:-1]:
        child = node.setdefault(key, {})
        if child is None:  # a section without a key, or one that is left out by default
            child = node[key] = {}
        if not isinstance(child, dict):
            raise UserError(f"--set {override!r}: {key} is a value, not a section.")
        node = child
    node[keys[-1]] = value


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply ``section.key=value`` overrides and validate the whole.

    Raises:
        UserError: the file is missing or not YAML, or a key is unknown, given twice, missing or out of range; the
            message names it, and the file or the override that it stands in.
    """
    return _validated(read_tree(path), overrides, str(path), "--set ", Config)


def change_config(config: Config, overrides: Sequence[str]) -> Config:
    """Apply ``section.key=value`` overrides to a configuration and validate the whole.

    Raises:
        UserError: a key is unknown or out of range; the message names it.
    """
    return _validated(config.model_dump(mode="json"), overrides, "the configuration", "", Config)


def guard_tree(overrides: Sequence[str]) -> GuardTree:
    """Build the sections of a guard that stands alone, without a file.

    Raises:
        UserError: a key is unknown or out of range; the message names it.
    """
    return _validated({}, overrides, "the guard", "--set ", GuardTree)


Tree = TypeVar("Tree", bound=Section)


def _validated(tree: dict[str, Any], overrides: Sequence[str], source: str, flag: str, model: type[Tree]) -> Tree:
    changed = copy.deepcopy(tree)
    for override in overrides:
        _assign(changed, override)
    try:
        return model.model_validate(changed)
    except ValidationError as error:
        given = [f"{flag}{override}" for override in overrides]
        raise UserError(describe_mistakes(error, model, source, given, _mistakes_in(tree, model))) from error


def _mistakes_in(tree: dict[str, Any], model: type[Section]) -> ValidationError | None:
    try:
        model.model_validate(tree)
    except ValidationError as error:
        return error
    return None


def recorded_config(config: Config) -> str:
    """Return the YAML that a run keeps of its configuration: ``run.overwrite`` was meant for that call only."""
    run = config.run.model_copy(update={"overwrite": False})
    return dump_config(config.model_copy(update={"run": run}))


def dump_config(config: Config) -> str:
    """Return the resolved configuration as YAML; ``load_config`` reads it back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
