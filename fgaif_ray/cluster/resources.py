"""What each stage asks Ray for: the one place that both the actors and the plan of a cluster take it from.

A stage's actors are started with ``ResourceRequest.options()``, and ``stage_requests`` lists the same requests for
``fgaif_ray.cluster.plan``, so that a plan cannot promise anything else than what runs.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from fgaif_ray.config import ChatGuardConfig, Config, EngineConfig, VerifierConfig

EXTRACTION_CPUS: Final = 0.5
"""An extraction worker waits for its endpoint most of the time."""
GATEWAY_CPUS: Final = 0.1
GATEWAYS: Final = 2
"""One goes on where the other one dies."""
ROOM_FOR_GATEWAYS: Final = 4
"""Processors of a machine that has room for so many; each is a process that has to start and to hold a tokenizer."""
LORA_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""Adapter ranks that vLLM reserves room for; an adapter of a rank in between takes the next one."""
LORA_SLOTS: Final = 2
"""Adapters that an engine has room for: requests in flight end on the old version while the new one is loaded."""
NODE_LABEL: Final = "ray.io/node-id"
"""Label that Ray gives every node."""
SERVE_STAGE: Final = "serve_rewards"
ALIGN_STAGE: Final = "align"


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """What each of several equal actors asks for.

    Example: ``ResourceRequest("Sampler", "sample.engine", 2, num_cpus=4, num_gpus=1)``
    """

    actor: str
    """Name of the class or deployment."""
    section: str
    """Section of the configuration that decides."""
    count: int
    """How many are started."""
    num_cpus: float
    num_gpus: float = 0
    label_selector: Mapping[str, str] = field(default_factory=dict)
    pool: bool = False
    """Whether one of them is enough to go on: workers of Ray Data begin as room is found."""
    most: int | None = None
    """How many there can become, where their number follows the load or the room."""
    custom_resource: str | None = None
    """Of which each takes one."""
    resize_every_s: float | None = None
    """Seconds between looks whether more workers of Ray Train have room."""

    def options(self) -> dict[str, Any]:
        """Keywords of ``Actor.options``, ``Dataset.map_batches`` and of a deployment's ``ray_actor_options``."""
        selector = {"label_selector": dict(self.label_selector)} if self.label_selector else {}
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, **selector}

    def scaling(self) -> dict[str, Any]:
        """Keywords of Ray Train's ``ScalingConfig``."""
        elastic = {"elastic_resize_monitor_interval_s": self.resize_every_s} if self.resize_every_s is not None else {}
        return {
            "num_workers": self.count if self.most is None else (self.count, self.most),
            **elastic,
            "use_gpu": self.num_gpus > 0,
            "resources_per_worker": self.resources(),
            "label_selector": dict(self.label_selector) or None,
        }

    def resources(self) -> dict[str, float]:
        """Amounts by the names that Ray gives resources, without zeros."""
        custom = {} if self.custom_resource is None else {self.custom_resource: 1.0}
        amounts = {"CPU": self.num_cpus, "GPU": self.num_gpus} | custom
        return {name: amount for name, amount in amounts.items() if amount > 0}


def _of_engine(actor: str, section: str, count: int, engine: EngineConfig, pool: bool = True) -> ResourceRequest:
    selector = dict(engine.label_selector)
    return ResourceRequest(actor, f"{section}.engine", count, engine.num_cpus, engine.num_gpus, selector, pool)


def sampler(config: Config) -> ResourceRequest:
    """Of `actors.sampling.sampler`."""
    return _of_engine("Sampler", "sample", config.sample.engines, config.sample.engine)


def fact_extraction(config: Config) -> ResourceRequest:
    """Of `actors.labelling.extraction`."""
    extractor = config.label.extractor
    return ResourceRequest(
        "FactExtraction",
        "label.extractor",
        extractor.workers,
        EXTRACTION_CPUS,
        label_selector=dict(extractor.label_selector),
        pool=True,
    )


def block_ids(consumer: ResourceRequest) -> ResourceRequest:
    """Of the tasks that make numbers of blocks for ``consumer`` (`actors.labelling.block_ids`): they go where it
    is, and leave it all of the node.
    """
    return replace(consumer, actor="BlockIds", num_cpus=0, num_gpus=0)


def verifier(verifier: VerifierConfig, second: bool = False) -> ResourceRequest:
    """Of the verifiers of `actors.labelling`: the first, calibration's or, with ``second``, the second one."""
    actor, section = ("SecondVerifier", "label.second_verifier") if second else ("Verifier", "label.verifier")
    return _of_engine(actor, section, verifier.engines, verifier.engine)


def reward_trainer(config: Config) -> ResourceRequest:
    """Of a worker of `actors.rewards.trainer`."""
    rewards = config.rewards
    return ResourceRequest(
        "RewardTrainer",
        "rewards",
        rewards.num_workers,
        rewards.cpus_per_worker,
        rewards.gpus_per_worker,
        dict(rewards.label_selector),
    )


def reward_scorers(config: Config) -> dict[str, tuple[str, ...]]:
    """Names of the reward deployments and the fact types that each of them scores.

    Where one forward pass gives all verdicts (see ``rewards.kind``), so does one deployment.
    """
    if config.serve.placement == "shared" or config.rewards.kind != "separate":
        return {"SharedReward": config.run.type_names}
    return {f"{fact_type.capitalize()}Reward": (fact_type,) for fact_type in config.run.type_names}


def reward_replica(config: Config, deployment: str) -> ResourceRequest:
    """Of a replica of a reward deployment (`actors.rewards.service`)."""
    serve = config.serve
    return ResourceRequest(
        deployment,
        "serve",
        serve.min_replicas,
        serve.num_cpus,
        serve.num_gpus,
        dict(serve.label_selector),
        most=max(serve.min_replicas, serve.max_replicas),
    )


def reward_threads(config: Config, models: int) -> int | None:
    """CPU threads of a replica that holds so many reward models; None leaves them to torch.

    Processors are those of the machine that deploys: nodes with fewer want ``serve.threads``.
    """
    if config.serve.threads is not None or config.serve.num_gpus:
        return config.serve.threads
    return min(models, len(os.sched_getaffinity(0)))


def reward_gateway(config: Config, node: str | None = None) -> ResourceRequest:
    """Of the gateways before the reward deployments: ``serve.gateways``, or as many as this machine has room for.

    Args:
        config: of the run.
        node: id of the node that they have to be on, even if that has no CPU to give, as a head; None for any node.
    """
    has_room = len(os.sched_getaffinity(0)) >= ROOM_FOR_GATEWAYS
    count = config.serve.gateways or (GATEWAYS if has_room else 1)
    if node is not None:
        return ResourceRequest("RewardGateway", "serve", count, 0, label_selector={NODE_LABEL: node})
    return ResourceRequest("RewardGateway", "serve", count, GATEWAY_CPUS)


def guard_replica(guard: ChatGuardConfig) -> ResourceRequest:
    """Of a replica of `actors.guard`, which waits for others most of the time."""
    most = max(guard.min_replicas, guard.max_replicas)
    selector = dict(guard.label_selector)
    return ResourceRequest("ChatGuard", "guard", guard.min_replicas, guard.num_cpus, label_selector=selector, most=most)


def rollout_worker(config: Config) -> ResourceRequest:
    """Of `actors.alignment.rollout`."""
    rollout = config.align.rollout
    return _of_engine("RolloutWorker", "align.rollout", rollout.workers, rollout.engine, pool=False)


def learner(config: Config) -> ResourceRequest:
    """Of a worker of `actors.alignment.learner` or `actors.alignment.preference_learner`."""
    align = config.align
    is_elastic = align.most_workers > align.fewest_workers
    return ResourceRequest(
        "Learner",
        "align",
        align.fewest_workers,
        align.cpus_per_worker,
        align.gpus_per_worker,
        dict(align.label_selector),
        most=align.most_workers if is_elastic else None,
        custom_resource=align.worker_resource,
        resize_every_s=align.resize_every_s if is_elastic else None,
    )


def generator(config: Config) -> ResourceRequest:
    """Of `actors.evaluation.generator`."""
    return _of_engine("Generator", "evaluate", 1, config.evaluate.engine)


def stage_requests(config: Config) -> dict[str, list[ResourceRequest]]:
    """What the stages of the pipeline ask for, in the order in which they run.

    The requests of a stage are there at the same time, and so are those of ``serve_rewards`` and ``align``; where
    preferences are learnt from there is no service. Tasks that copy given responses ask for one CPU each; the driver
    and what Ray starts for itself ask for none.
    """
    second = config.label.second_verifier
    service = [reward_gateway(config), *(reward_replica(config, name) for name in reward_scorers(config))]
    online = not config.align.learns_from_preferences
    return {
        "sample": [sampler(config)],
        "label": [fact_extraction(config), verifier(config.label.verifier)],
        **({} if second is None else {"label, second": [verifier(second, second=True)]}),
        "train_rewards": [reward_trainer(config)],
        **({SERVE_STAGE: service} if online else {}),
        ALIGN_STAGE: [learner(config), *([rollout_worker(config)] if online else [])],
        "evaluate": [generator(config)],
    }
