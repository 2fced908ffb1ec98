"""The base of all sections of the configuration, and the sections that several jobs read."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, PlainSerializer, field_validator

from fgaif_ray.errors import UserError
from fgaif_ray.fact_types import (
    BUILT_IN,
    SUFFIXES,
    FactType,
    dump_fact_type,
    parse_fact_type,
    read_fact_type,
    type_names,
)
from fgaif_ray.records import FACT_TYPES

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
LabelCondition = Annotated[str, Field(pattern=rf"^(?:!?{_LABEL}|!?in\({_LABEL}(?:, ?{_LABEL})*\))$")]
LabelSelector = dict[str, LabelCondition]
"""Labels that a node must have to take the actors, e.g. ``{role: inference}``, ``{role: "!training"}`` or ``{role:
"in(inference, training)"}``; empty takes any node. The node types of ``cluster.yaml`` have labels."""


OwnFactType = Annotated[InstanceOf[FactType], PlainSerializer(dump_fact_type)]


class Section(BaseModel):
    """A section of the configuration; unknown keys are errors, and a section does not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunConfig(Section):
    """Folder and seed of a run."""

    dir: str = Field(min_length=1)
    """Folder of the run (a local path, or a URI that fsspec knows, e.g. ``s3://bucket/run``)."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Every random choice of the run follows from it."""
    overwrite: bool = False
    """Replace finished stages that were made with other settings; otherwise a job says what would be lost and stops."""
    fact_types: tuple[str | OwnFactType, ...] = Field(default=FACT_TYPES, min_length=1)
    """What is labelled, learnt and shown, in this order: names of types that come with the project, and paths of files
    with your own (docs/extending.md), whose content takes the place of the path here."""

    @field_validator("fact_types", mode="before")
    @classmethod
    def _read_own_types(cls, value: Any) -> Any:
        return tuple(_named_type(entry) for entry in value) if isinstance(value, list | tuple) else value

    @field_validator("fact_types")
    @classmethod
    def _names_differ(cls, value: tuple[str | FactType, ...]) -> tuple[str | FactType, ...]:
        names = [entry if isinstance(entry, str) else entry.name for entry in value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"run.fact_types has {twice[0]} twice")
        return value

    @property
    def types(self) -> tuple[FactType, ...]:
        """The fact types of the run, the order of every array with a dimension of types."""
        return tuple(BUILT_IN[entry] if isinstance(entry, str) else entry for entry in self.fact_types)

    @property
    def type_names(self) -> tuple[str, ...]:
        """Their names."""
        return type_names(self.types)


def _named_type(entry: Any) -> Any:
    """An entry of ``run.fact_types``, files read.

    Raises:
        ValueError: it stands for no fact type.
    """
    try:
        if isinstance(entry, dict):
            return parse_fact_type(entry)
        if not isinstance(entry, str) or entry in BUILT_IN:
            return entry
        if entry.endswith(SUFFIXES):
            return read_fact_type(entry)
    except (UserError, ValueError) as error:
        raise ValueError(f"run.fact_types: {str(error).removesuffix('.')}") from error
    raise ValueError(
        f"run.fact_types: there is no fact type {entry!r}: give {', '.join(BUILT_IN)}, or the path of a YAML or JSON "
        "file with one of your own"
    )


class RayConfig(Section):
    """How a job reaches Ray."""

    address: str | None = None
    """Cluster to join; None joins the cluster a submitted job runs on, or starts Ray on this machine."""
    num_cpus: int | None = None
    """Logical CPUs of a Ray started here; None counts the machine's."""
    closed_network: bool = False
    """Set where a firewall lets nobody else reach the ports of the cluster: without authentication it takes commands
    from everybody who can, which jobs warn of, and reward endpoints that are open to the network refuse."""
    logical_gpus: int | None = Field(default=None, ge=1)
    """Logical GPUs of a Ray started here: everything is placed as on a machine that has them, and computes on the CPU.
    It is for trying a configuration before there is a GPU."""
    log_to_driver: bool = False
    """Show the log lines of workers; the jobs' own lines and errors come through either way."""
    object_store_gib: float = Field(default=1.0, gt=0)
    """Object store of a Ray started here, GiB."""


class EngineConfig(Section):
    """A vLLM engine and the share of a machine it takes."""

    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    """Of weights and computation; ``auto`` is the checkpoint's own."""
    max_model_len: int = Field(default=2048, ge=64)
    """The most tokens of a prompt, its images and the answer together."""
    max_num_seqs: int = Field(default=256, ge=1)
    """The most sequences that are computed at a time."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that the engine takes for weights and cache."""
    kv_cache_gib: float | None = Field(default=None, gt=0)
    """Key-value cache in GiB; set it on CPU, where vLLM otherwise reserves a share of the host's memory."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens of a block of that cache: prefixes are shared by whole blocks, so an image of few tokens needs small ones.
    None is vLLM's choice, 16 on most GPUs and 128 on CPU, which takes multiples of 32."""
    enforce_eager: bool = False
    """Do without compilation and CUDA graphs: starts faster, runs slower."""
    num_cpus: float = Field(default=1, ge=0)
    """Logical CPUs that the engine asks Ray for."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs that it asks Ray for; may be a fraction."""
    label_selector: LabelSelector = {}
    """Labels of the nodes it may run on."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of the engine's computation; None leaves vLLM's choice."""


class PolicyConfig(Section):
    """The vision-language model that is aligned."""

    model: str
    """A vision-language checkpoint: local folder, or a name that transformers can load."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    """Of the learner's backbone; ``auto`` is the checkpoint's own. Adapters are float32."""
    allow_untested: bool = False
    """Whether the models of a run (policy, verifiers, backbone of the rewards) may be of families that the tests do not
    cover (see ``docs/models.md``); the self-check at the start then decides."""


class LoRAOptions(Section):
    """Low-rank adapters on the language model's linear layers."""

    rank: int = Field(default=64, ge=1)
    """Rank of the adapters."""
    alpha: int = Field(default=16, ge=1)
    """Scale: what an adapter adds is multiplied by ``alpha / rank``."""
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the linear layers of the decoder that get an adapter; one that it does not have is an error that lists
    those there are."""
