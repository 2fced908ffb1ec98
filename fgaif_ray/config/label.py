"""Sections of AI feedback."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from fgaif_ray.config.base import EngineConfig, LabelSelector, Section
from fgaif_ray.config.calls import CallsConfig
from fgaif_ray.config.per_type import DEFAULT_THRESHOLD, by_type, expand
from fgaif_ray.records import FACT_TYPES


class ExtractorConfig(CallsConfig):
    """The language model that splits segments into atomic facts, behind an OpenAI-compatible endpoint."""

    section: ClassVar[str] = "label.extractor"
    purpose: ClassVar[str] = "extraction"

    prompt: str = "extract-v1"
    """Name of the prompt, with its version: ``extract-v1`` or ``extract-short-v2``."""
    mode: Literal["segment", "response"] = "segment"
    """One call per segment, or one call for a whole response."""
    workers: int = Field(default=1, ge=1)
    """Workers that call the endpoint, each with ``concurrency`` calls in flight."""
    label_selector: LabelSelector = {}
    """Labels of the nodes that the workers, which call the endpoint, may run on."""
    max_tokens: int = Field(default=512, ge=1)
    """The most tokens of an answer."""
    reject_failed: bool = False
    """Reject the responses that the endpoint fails on after all retries (HTTP 5xx, time-outs). Otherwise they stay for
    the next run of the same command."""


Threshold = Annotated[float, Field(gt=0, lt=1)]


class CalibrationConfig(Section):
    """A labelled set on which each fact type's threshold is calibrated before the labelling, for balanced accuracy."""

    path: str
    """JSON lines ``{"image", "fact", "type", "consistent"[, "weight"]}``; ``fgaif audit import`` writes such a
    file from people's answers."""


class VerifierConfig(Section):
    """The vision-language model that checks facts against the image."""

    model: str
    """A vision-language checkpoint: local folder, or a name."""
    prompt: str = "verify-v1"
    """Name of the prompt, with its version."""
    threshold: dict[str, Threshold] = by_type(DEFAULT_THRESHOLD)
    """A fact is consistent when P(yes) reaches it: a number, or one for each fact type (where there is none, 0.5)."""
    calibration: CalibrationConfig | None = None
    """Finds the thresholds; leave ``threshold`` out."""
    engines: int = Field(default=1, ge=1)
    """Engines, each with the resources of ``engine``."""
    engine: EngineConfig = EngineConfig()

    @field_validator("threshold", mode="before")
    @classmethod
    def _one_for_all(cls, value: Any) -> Any:
        return expand(value, FACT_TYPES, DEFAULT_THRESHOLD) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _one_source_of_thresholds(self) -> Self:
        if self.calibration is not None and set(self.threshold.values()) != {DEFAULT_THRESHOLD}:
            raise ValueError("a verifier's calibration finds its thresholds: leave its threshold out")
        return self


class ControlItemConfig(Section):
    """Control items: facts of known truth, asked beside a block's own, to measure the verifier's false-accept rate."""

    per_block: int = Field(default=4, ge=0)
    """Known-false facts of a block, and known-true ones on top; 0 asks none."""
    path: str | None = None
    """JSON lines ``{"image", "fact"[, "consistent"]}`` of your own, ``image`` a list where a fact is about several;
    facts are false unless ``consistent`` is true."""
    texts: str | None = None
    """A text file of sentences that are false, or true, of every image, and of orders to say yes, in the form of
    ``fgaif_ray/audit/control_items/texts-v1.txt``, which None stands for; where prompts may have several images, for
    ``texts-any-v1.txt``."""
    limit: float = Field(default=0.1, ge=0, le=1)
    """Share of known-false facts answered yes beyond which the job warns."""


class HumanLabelsConfig(Section):
    """Human labels in place of the AI's (FGAIF's ablation with human labels); the AI's stay where people gave none."""

    path: str
    """Answers to an audit: the page's export, or Label Studio's."""
    types: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Fact types whose labels are taken; None takes all."""


class NoiseRates(Section):
    """Shares of the labels of one type that are flipped."""

    to_hallucinated: float = Field(default=0, ge=0, le=1)
    """Of the consistent ones."""
    to_consistent: float = Field(default=0, ge=0, le=1)
    """Of the hallucinated ones."""


class NoiseConfig(Section):
    """Label noise on purpose, to measure what label quality is worth; a higher rate flips a superset of a lower one.

    Beside the seed, the rates of each fact type under its name.
    """

    model_config = ConfigDict(extra="allow")
    if not TYPE_CHECKING:  # mypy takes it for an argument
        __pydantic_extra__: dict[str, NoiseRates]

    seed: int = 0
    """Of the choice which labels are flipped."""

    @property
    def by_type(self) -> dict[str, NoiseRates]:
        """The rates of the types that have some."""
        return self.__pydantic_extra__ or {}

    def rates(self, fact_type: str) -> NoiseRates:
        """The rates of one type; zero unless configured."""
        return self.by_type.get(fact_type, NoiseRates())


class LabelConfig(Section):
    """AI feedback."""

    extractor: ExtractorConfig
    verifier: VerifierConfig
    second_verifier: VerifierConfig | None = None
    """Checks the same facts once more, after the first: the two never share a machine's memory."""
    disagreement: Literal["report", "mask"] = "report"
    """Where the verifiers differ: keep the first one's labels, or leave labels that depend on such a fact out of the
    training of reward models."""
    control_items: ControlItemConfig = ControlItemConfig()
    human: HumanLabelsConfig | None = None
    noise: NoiseConfig = NoiseConfig()
    batch_size: int = Field(default=32, ge=1)
    """Responses per Ray Data block, the unit of work and of resume."""

    @model_validator(mode="before")
    @classmethod
    def _control_items_were_canaries(cls, values: Any) -> Any:
        """Take the key ``canaries``, the earlier name of ``control_items``."""
        if not isinstance(values, dict) or "canaries" not in values:
            return values
        if "control_items" in values:
            raise ValueError("label.canaries is the earlier name of label.control_items: move its keys there")
        return {"control_items" if key == "canaries" else key: value for key, value in values.items()}

    @model_validator(mode="after")
    def _mask_has_two(self) -> Self:
        if self.disagreement == "mask" and self.second_verifier is None:
            raise ValueError("label.disagreement: mask needs label.second_verifier")
        return self
