"""The configuration: one tree, a section per job, read from YAML with ``--set section.key=value`` on top.

This module is light on purpose: ``--help`` and every configuration error answer before torch, ray or vllm are imported.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fgaif_ray.errors import UserError


class Section(BaseModel):
    """A section of the configuration; unknown keys are errors, and a section does not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RunConfig(Section):
    """Where a run lives and what makes it repeatable."""

    dir: str
    """Folder of the run (a local path, or a URI that fsspec knows, e.g. ``s3://bucket/run``)."""
    seed: int = 0


class RayConfig(Section):
    """How a job reaches Ray."""

    address: str | None = None
    """Cluster to join; None joins the cluster a submitted job runs on, or starts Ray on this machine."""
    num_cpus: int | None = None
    """Logical CPUs of a Ray started here; None counts the machine's."""
    log_to_driver: bool = False
    """Show the log lines of workers; the jobs' own lines and errors come through either way."""
    object_store_gib: float = Field(default=1.0, gt=0)
    """Object store of a Ray started here, GiB."""


class ColumnNames(Section):
    """What the columns of ``data.source: rows`` and ``dataset`` are called."""

    image: str = "image"
    prompt: str | None = "prompt"
    """None: the rows have no prompts of their own, ``data.prompts`` are asked."""
    response: str | None = "response"
    """Responses that are labelled as they are; the column may be missing. None: every row is sampled."""


class DataConfig(Section):
    """The images and prompts that the policy answers."""

    source: Literal["folder", "coco", "rows", "dataset", "shapes"] = "folder"
    """``folder``: images below ``path``. ``coco``: those of them that ``annotations`` names. ``rows``: JSON lines or
    Parquet with columns of images, prompts and, where they are there, responses. ``dataset``: such columns in a Hugging
    Face dataset. ``shapes``: the embedded world draws its own."""
    path: str | None = None
    """Image folder (``folder``, ``coco``), file or folder of files (``rows``), folder or name (``dataset``); a local
    path, or a URI that fsspec knows, e.g. ``s3://bucket/images``."""
    annotations: str | None = None
    """COCO file with the list of images, e.g. ``instances_train2014.json``."""
    split: str | None = None
    """Split of a dataset, e.g. ``train``; None takes the only one."""
    columns: ColumnNames = ColumnNames()
    sample_images: int = Field(default=3500, ge=1)
    """Images whose responses are labelled to train the reward models (FGAIF section 4.1: 3,500)."""
    align_images: int = Field(default=14000, ge=1)
    """Images of PPO, disjoint from the former (FGAIF section 4.1: 14,000)."""
    evaluate_images: int = Field(default=500, ge=1)
    """Held-out images of the evaluation."""
    prompts: tuple[str, ...] = Field(default=("Describe this image in detail.",), min_length=1)
    """Prompts; each image gets one, in turn. Rows with prompts of their own ask those instead."""

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> Self:
        if self.source != "shapes" and self.path is None:
            holds = {
                "rows": "the JSON lines or Parquet file, or a folder of them",
                "dataset": "the folder that save_to_disk wrote, or the dataset's name",
            }.get(self.source, "the folder that holds the images")
            raise ValueError(f"data.path is needed with data.source={self.source}: set it to {holds}")
        if (self.annotations is not None) != (self.source == "coco"):
            raise ValueError(
                "data.annotations is needed with data.source=coco: set it to the annotation file, e.g. "
                "instances_train2014.json"
                if self.source == "coco"
                else f"data.annotations is not read with data.source={self.source}: leave it out, or set coco"
            )
        if self.split is not None and self.source != "dataset":
            raise ValueError(f"data.split is not read with data.source={self.source}: leave it out, or set dataset")
        return self


class EngineConfig(Section):
    """A vLLM engine and the share of a machine it takes."""

    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    max_model_len: int = Field(default=2048, ge=64)
    max_num_seqs: int = Field(default=256, ge=1)
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    kv_cache_gib: float | None = Field(default=None, gt=0)
    """Key-value cache in GiB; set it on CPU, where vLLM otherwise reserves a share of the host's memory."""
    enforce_eager: bool = False
    num_cpus: float = Field(default=1, ge=0)
    num_gpus: float = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of the engine's computation; None leaves vLLM's choice."""


class PolicyConfig(Section):
    """The vision-language model that is aligned."""

    model: str
    """A LLaVA-family checkpoint: local folder, or a name that transformers can load."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"


class SampleConfig(Section):
    """Sampling of responses (FGAIF section 4.1: T=1, top_p=1, at most 896 new tokens)."""

    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=896, ge=1)
    batch_size: int = Field(default=64, ge=1)
    engines: int = Field(default=1, ge=1)
    engine: EngineConfig = EngineConfig()


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


class LoRAOptions(Section):
    """Low-rank adapters on the language model's linear layers."""

    rank: int = Field(default=64, ge=1)
    alpha: int = Field(default=16, ge=1)
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class RewardsConfig(Section):
    """Training of the three reward models (FGAIF section 3.3, 4.1: LoRA r=64, lr 2e-5, batch 32)."""

    backbone: str
    """A LLaVA-family checkpoint, frozen."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    lora: LoRAOptions = LoRAOptions()
    learning_rate: float = Field(default=2e-5, gt=0)
    batch_size: int = Field(default=32, ge=1)
    """Responses per optimiser step, over all workers."""
    epochs: int = Field(default=1, ge=1)
    patience: int = Field(default=2, ge=1)
    """Epochs without a better held-out balanced accuracy before training stops."""
    validation_fraction: float = Field(default=0.15, gt=0, lt=1)
    """Share of the images that is held out."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    num_workers: int = Field(default=1, ge=1)
    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)


class ServeConfig(Section):
    """The reward service."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    """HTTP port of the gateway; 0 takes a free one."""
    placement: Literal["separate", "shared"] = "separate"
    """Three deployments, or one replica that holds the backbone once and scores the three adapters."""
    max_batch_size: int = Field(default=32, ge=1)
    batch_wait_timeout_s: float = Field(default=0.01, ge=0)
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=1, ge=0)
    num_gpus: float = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    request_timeout_s: float = Field(default=60, gt=0)


class PPOConfig(Section):
    """The PPO update (FGAIF section 4.1; defaults that differ from the paper: see configs/paper.yaml)."""

    epochs: int = Field(default=2, ge=1)
    """Passes over each rollout batch."""
    minibatch_size: int = Field(default=256, ge=1)
    """Responses per optimiser step, over all workers."""
    micro_batch_size: int = Field(default=16, ge=1)
    """Responses per forward and backward pass of one worker."""
    learning_rate: float = Field(default=1e-5, gt=0)
    critic_learning_rate: float = Field(default=1e-5, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    clip: float = Field(default=0.2, gt=0)
    value_clip: float = Field(default=0.2, gt=0)
    value_coefficient: float = Field(default=0.1, ge=0)
    entropy_coefficient: float = Field(default=0.0, ge=0)
    gamma: float = Field(default=1.0, gt=0, le=1)
    lambda_: float = Field(default=0.95, ge=0, le=1)
    whiten_advantages: bool = True
    max_grad_norm: float = Field(default=1.0, gt=0)
    importance_cap: float = Field(default=2.0, gt=0)
    """Truncation of the importance weights between the rollout engine's and the learner's log-probabilities."""


class RewardComposition(Section):
    """How verdicts become token rewards."""

    value: Literal["expected", "argmax"] = "expected"
    weights: dict[str, float] = Field(default={"existence": 1.0, "attribute": 1.0, "relation": 1.0})
    granularity: Literal["segment", "response"] = "segment"
    """``response`` is the w-Coarse ablation: one reward per response."""
    normalise_by_segments: bool = False
    missing_eos_penalty: float = Field(default=1.0, ge=0)
    """Subtracted at the last token of a response that did not end by itself."""
    failure: Literal["mask", "drop", "fail"] = "mask"
    """What becomes of a sample whose reward could not be had."""


class KLConfig(Section):
    """The pull towards the adapter-free backbone."""

    coefficient: float = Field(default=0.1, ge=0)
    estimator: Literal["k1", "k2", "k3"] = "k1"
    target: float | None = Field(default=None, gt=0)
    """Sum of the per-token KL of a response that an adaptive controller steers to; None keeps the coefficient."""
    horizon: int = Field(default=10000, ge=1)


class RolloutConfig(Section):
    """The group of vLLM rollout workers."""

    workers: int = Field(default=1, ge=1)
    max_tokens: int = Field(default=896, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    sync: Literal["adapter", "merged"] = "adapter"
    """How a new policy reaches the engine: its adapter, or merged weights (faster on CPU)."""
    log_prob_tolerance: float = Field(default=0.05, gt=0)
    """Largest mean difference between the engine's and the learner's log-probabilities of the same tokens after a
    sync."""
    engine: EngineConfig = EngineConfig()


class AlignConfig(Section):
    """PPO on dense rewards."""

    steps: int = Field(default=100, ge=1)
    rollout_batch_size: int = Field(default=512, ge=1)
    lora: LoRAOptions = LoRAOptions()
    ppo: PPOConfig = PPOConfig()
    reward: RewardComposition = RewardComposition()
    kl: KLConfig = KLConfig()
    rollout: RolloutConfig = RolloutConfig()
    critic_from_reward: Literal["existence", "attribute", "relation"] | None = None
    """Start the critic's adapter from this reward model (FGAIF section 4.1: the object one)."""
    checkpoint_every: int = Field(default=10, ge=1)
    """Steps between checkpoints, the most that an interruption can lose."""
    log_samples_every: int = Field(default=10, ge=1)
    num_workers: int = Field(default=1, ge=1)
    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)


class EvaluateConfig(Section):
    """Evaluation before and after alignment."""

    max_tokens: int = Field(default=896, ge=1)
    pope_questions_per_image: int = Field(default=6, ge=2)
    """Half of them about objects that are there; taken where the truth of the images is known."""
    batch_size: int = Field(default=64, ge=1)
    engine: EngineConfig = EngineConfig()


class ReportConfig(Section):
    """The HTML report."""

    examples: int = Field(default=12, ge=1)
    title: str = "FGAIF run"


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


def _describe(error: ValidationError, source: str) -> str:
    problems = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "missing":
            problems.append(f"the key {where} is missing")
        elif item["type"] == "extra_forbidden":
            problems.append(f"the key {where} is not known (check its spelling)")
        elif item["type"] == "value_error":
            problems.append(item["msg"].removeprefix("Value error, "))
        else:
            problems.append(f"{where}: {item['msg'][0].lower()}{item['msg'][1:]} (got {item['input']!r})")
    return f"{source}: " + "; ".join(problems) + "."


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
        if not isinstance(child, dict):
            raise UserError(f"--set {override!r}: {key} is a value, not a section.")
        node = child
    node[keys[-1]] = value


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply ``section.key=value`` overrides and validate the whole.

    Raises:
        UserError: the file is missing or no YAML, or a key is unknown, missing or out of range; the message names it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"Cannot read the configuration {path}: {error.strerror}; give an existing file with --config."
        ) from error
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0]}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no sections; see configs/shapes.yaml for an example.")
    for override in overrides:
        _assign(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_describe(error, str(path))) from error


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML; ``load_config`` reads it back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
