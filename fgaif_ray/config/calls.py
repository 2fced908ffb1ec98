"""Settings of every paid model behind an OpenAI-compatible endpoint."""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from fgaif_ray.config.base import EngineConfig, Section


class PriceConfig(Section):
    """Price of an endpoint's tokens."""

    input_per_million: float = Field(ge=0)
    """Price of a million prompt tokens."""
    output_per_million: float = Field(ge=0)
    """Price of a million completion tokens."""
    currency: str = "USD"
    """For messages and accounts; nothing is converted."""

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return the price of prompt and completion tokens."""
        return (prompt_tokens * self.input_per_million + completion_tokens * self.output_per_million) / 1e6


class CallsConfig(Section):
    """A model behind an OpenAI-compatible endpoint: where it is, how fast and for how much money it may be called."""

    section: ClassVar[str]
    """Place in the tree, for messages."""
    purpose: ClassVar[str]
    """Purpose of the calls; names the folders of answers and of the account, and the endpoint in messages."""

    base_url: str | None = None
    """Endpoint; None with ``serve_model`` set starts vLLM's own server on loopback for the time of the job."""
    model: str
    """Model name sent to the endpoint."""
    serve_model: str | None = None
    """Checkpoint that the job serves itself; leave unset to call ``base_url``."""
    compact_json: bool = True
    """A server that the job starts lets the model write JSON without white space only, in which some models go on until
    ``max_tokens``; set false for a model that was taught to write it."""
    engine: EngineConfig = EngineConfig()
    """Engine of a server that the job starts."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key of ``base_url``; keys are never in files."""
    concurrency: int = Field(default=32, ge=1)
    """Calls in flight of one worker."""
    timeout_s: float = Field(default=60, gt=0)
    """Seconds for one call."""
    max_retries: int = Field(default=5, ge=0)
    """Further tries of a call after a temporary failure."""
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
                f"{self.section}.budget needs {self.section}.price: set input_per_million and output_per_million"
            )
        return self

    @model_validator(mode="after")
    def _one_endpoint(self) -> Self:
        if (self.base_url is None) == (self.serve_model is None):
            raise ValueError(f"set exactly one of {self.section}.base_url and {self.section}.serve_model")
        return self
