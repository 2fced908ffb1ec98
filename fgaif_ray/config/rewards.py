"""Sections of the reward models and their service."""

from typing import Literal

from pydantic import Field

from fgaif_ray.config.base import LabelSelector, LoRAOptions, Section


class RewardsConfig(Section):
    """Training of the reward models, one per fact type (FGAIF section 3.3, 4.1: LoRA r=64, lr 2e-5, batch 32)."""

    backbone: str
    """A vision-language checkpoint, frozen."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "auto"
    """Of the backbone; ``auto`` is the checkpoint's own. Adapters and heads are float32."""
    quantisation: Literal["none", "4bit"] = "none"
    """``4bit`` holds the frozen backbone's language model in NF4, for training and service; it takes an NVIDIA GPU and
    bitsandbytes."""
    kind: Literal["separate", "multitask", "coarse"] = "separate"
    """A model per fact type; one adapter with a head per type, whose one forward pass gives all verdicts; or one
    verdict per response, the w-Coarse ablation."""
    lora: LoRAOptions = LoRAOptions()
    learning_rate: float = Field(default=2e-5, gt=0)
    """Of adapters and heads."""
    batch_size: int = Field(default=32, ge=1)
    """Responses per optimiser step, over all workers."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Responses per forward and backward pass of one worker."""
    class_weights: Literal["balanced", "none"] = "balanced"
    """Weights of rare classes in the loss. They are taken out of the probabilities again, so they change what is
    learnt, and not what a verdict pays."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each label that is spread evenly over the three classes while training."""
    label_noise: Literal["kept", "taken_out"] = "kept"
    """``taken_out``: the shares of wrong labels are estimated on the held-out images, and verdicts say how likely the
    truth is instead of the label (``fgaif_ray.rewards.label_noise``). It raises what true statements pay, the more so
    the worse the labels are."""
    planted_share: float = Field(default=0.5, ge=0, le=1)
    """Responses with planted repeats per labelled one, from which types with derived labels (``novelty``) learn too;
    see ``fgaif_ray.rewards.planted``."""
    fact_counts: bool = False
    """Whether estimates of how many facts a segment states are fitted and kept beside the heads, after training
    (``fgaif_ray.rewards.fact_counts``): ``align.reward.unit: fact`` takes them."""
    epochs: int = Field(default=1, ge=1)
    """The most passes over the labelled responses."""
    patience: int = Field(default=2, ge=1)
    """Epochs without a lower held-out loss before training stops."""
    validation_fraction: float = Field(default=0.15, gt=0, lt=1)
    """Share of the images that is held out."""
    temperature_scaling: bool = False
    """Whether logits are divided by the temperature that was fitted on the held-out images. It never changes the most
    probable class, but it does change what a verdict pays under ``align.reward.value: expected``, and by another factor
    for each fact type: the weights and the KL coefficient mean something else then, so it has to be asked for."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradients."""
    num_workers: int = Field(default=1, ge=1)
    """Workers of the training, data parallel."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """Logical CPUs that each of them asks Ray for."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs that each of them asks Ray for; may be a fraction."""
    label_selector: LabelSelector = {}
    """Labels of the nodes that the workers may run on."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of a worker's computation; None leaves torch's choice."""


class ServeConfig(Section):
    """The reward service."""

    host: str = "127.0.0.1"
    """Address on which the gateway listens. Any but loopback wants a token in ``FGAIF_REWARD_TOKEN``."""
    port: int = Field(default=8000, ge=0, le=65535)
    """HTTP port of the gateway; 0 takes a free one."""
    app_name: str = Field(default="rewards", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Of the Serve application. With another name it is reached below ``/<name>``: runs on one cluster can have a
    service each."""
    placement: Literal["shared", "separate"] = "shared"
    """One deployment whose replicas hold the backbone once and score all adapters, or a deployment per fact type, which
    can be on different nodes."""
    replace: Literal["in_place", "rolling"] = "in_place"
    """How other reward models take over from those that are served. ``in_place``: the old replicas go first, and
    requests wait for the new ones, up to ``request_timeout_s``; it works on any machine. ``rolling``: new replicas
    start beside the old ones, which go when the new ones are ready, so callers do not notice; it needs capacity for
    one more replica of each reward model, and waits until there is."""
    gateways: int | None = Field(default=None, ge=1)
    """Processes that take requests in. Where one dies, callers that try again are answered by another one meanwhile.
    None: two where the machine that deploys has four processors or more, else one."""
    max_batch_size: int = Field(default=32, ge=1)
    """Responses of a forward pass."""
    min_replicas: int = Field(default=1, ge=1)
    """Replicas of each reward deployment that are always there."""
    max_replicas: int = Field(default=1, ge=1)
    """The most replicas of each, under load."""
    num_cpus: float = Field(default=1, ge=0)
    """Logical CPUs that a replica asks Ray for."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs that a replica asks Ray for; may be a fraction."""
    label_selector: LabelSelector = {}
    """Labels of the nodes that the replicas may run on."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of a replica's computation. None: without a GPU one for each reward model in it, as far as there are
    processors; with one torch's choice."""
    max_waiting_items: int = Field(default=2048, ge=1)
    """Responses of HTTP requests that are being scored or wait for it, over all gateways; a request that does not fit
    gets 429."""
    max_wait_s: float = Field(default=20, gt=0)
    """Seconds after which the last response of a request would be scored, by how many wait and how many were lately
    scored a second; a request that would take longer gets 429, with the seconds after which it may fit."""
    preparers: int = Field(default=2, ge=1)
    """Processes beside each gateway that decode the images of requests and cut their responses into segments. One that
    takes too much time or memory for an item is killed."""
    request_timeout_s: float = Field(default=60, gt=0)
    """Seconds after which a request is answered with 504."""
