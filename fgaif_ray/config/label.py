"""Sections of AI feedback."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fgaif_ray.config.base import EngineConfig, Section


class PriceConfig(Section):
    """What an endpoint asks for its tokens."""

    input_per_million: float = Field(ge=0)
    """Price of a million prompt tokens."""
    output_per_million: float = Field(ge=0)
    """Price of a million completion tokens."""
    currency: str = "USD"

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Price of so many tokens."""
        return (prompt_tokens * self.input_per_million + completion_tokens * self.output_per_million) / 1e6


class ExtractorConfig(Section):
    """The language model that splits sub-sentences into atomic facts, behind an OpenAI-compatible endpoint."""

    base_url: str | None = None
    """Endpoint; None with ``serve_model`` set starts vLLM's own server on loopback for the time of the job."""
    model: str
    """Model name sent to the endpoint."""
    serve_model: str | None = None
    """Checkpoint that the job serves itself; leave unset to call ``base_url``."""
    engine: EngineConfig = EngineConfig()
    """Engine of a server that the job starts."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key of ``base_url``; keys never stand in files."""
    prompt: str = "extract-v1"
    mode: Literal["segment", "response"] = "segment"
    """One call per sub-sentence, or one call for a whole response."""
    concurrency: int = Field(default=32, ge=1)
    """Calls in flight of one worker."""
    workers: int = Field(default=1, ge=1)
    timeout_s: float = Field(default=60, gt=0)
    max_retries: int = Field(default=5, ge=0)
    max_tokens: int = Field(default=512, ge=1)
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Limit of all workers of the cluster together; None does not limit."""
    tokens_per_minute: float | None = Field(default=None, gt=0)
    """Limit of prompt and completion tokens of all workers together; None does not limit."""
    cache: str | None = None
    """Folder or URI of answers that several runs share; None keeps a run's answers in its own folder."""
    price: PriceConfig | None = None
    budget: float | None = Field(default=None, gt=0)
    """Money that a run may spend over all its attempts, in the price's currency; None does not limit."""

    @model_validator(mode="after")
    def _budget_has_price(self) -> Self:
        if self.budget is not None and self.price is None:
            raise ValueError(
                "label.extractor.budget needs label.extractor.price: set input_per_million and output_per_million"
            )
        return self

    @model_validator(mode="after")
    def _one_endpoint(self) -> Self:
        if (self.base_url is None) == (self.serve_model is None):
            raise ValueError("set exactly one of label.extractor.base_url and label.extractor.serve_model")
        return self


class VerifierConfig(Section):
    """The vision-language model that checks facts against the image."""

    model: str
    prompt: str = "verify-v1"
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """A fact is consistent when P(yes) reaches it."""
    engines: int = Field(default=1, ge=1)
    engine: EngineConfig = EngineConfig()


FactType = Literal["existence", "attribute", "relation"]


class HumanLabelsConfig(Section):
    """Human labels in place of the AI's (FGAIF's ablation with human labels); the AI's stay where people gave none."""

    path: str
    """Answers to an audit: the page's export, or Label Studio's."""
    types: tuple[FactType, ...] = Field(default=("existence", "attribute", "relation"), min_length=1)


class NoiseRates(Section):
    """Shares of the labels of one type that are turned around."""

    to_hallucinated: float = Field(default=0, ge=0, le=1)
    """Of the consistent ones."""
    to_consistent: float = Field(default=0, ge=0, le=1)
    """Of the hallucinated ones."""


class NoiseConfig(Section):
    """Label noise on purpose, to measure what label quality is worth; a higher rate flips a superset of a lower one."""

    seed: int = 0
    existence: NoiseRates = NoiseRates()
    attribute: NoiseRates = NoiseRates()
    relation: NoiseRates = NoiseRates()


class LabelConfig(Section):
    """AI feedback."""

    extractor: ExtractorConfig
    verifier: VerifierConfig
    human: HumanLabelsConfig | None = None
    noise: NoiseConfig = NoiseConfig()
    batch_size: int = Field(default=32, ge=1)
    """Responses per Ray Data block, the unit of work and of resume."""
