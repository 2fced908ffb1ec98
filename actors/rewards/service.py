"""The reward service: reward models behind one gateway, as the Serve application `rewards` (`serve.app_name`).

    HTTP client --> proxy --> RewardGateway -----> SharedReward  (replicas)
    PPO learner --> handle -->

SharedReward holds the backbone once and scores all types. With `serve.placement: separate` each type has a deployment
of its own, ExistenceReward and so on, but where `rewards.kind` has one adapter for all, whose forward pass gives all
verdicts.
`@serve.batch` merges lists of several callers up to `serve.max_batch_size` items, and never splits one.
"""

import asyncio
import math
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

from actors.cluster.authentication import read_callers_token
from actors.cluster.device import worker_device
from actors.cluster.loopback import keep_replica_on_loopback
from actors.cluster.serve import PROXY_MARGIN_S, QUIET, deployment_error, shutdown_application, start_serve
from actors.rewards.gateway import GatewaySettings, RewardGateway
from actors.rewards.http import token_digest
from actors.rewards.metrics import record_batch
from fgaif_ray.cluster import resources
from fgaif_ray.config import Config, change_config
from fgaif_ray.errors import UserError
from fgaif_ray.pixel_budget import PixelBudget
from fgaif_ray.records import fingerprint
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rewards.files import kind_of, read_domain_card, read_folder, read_trained_on
from fgaif_ray.rewards.scoring import (
    ScoredBatch,
    ScoringBatch,
    ScoringOutcome,
    combined_version,
    probe_batch,
    score_batches,
)
from fgaif_ray.serving.client import RewardClient
from fgaif_ray.serving.wire import TOKEN_VARIABLE, ModelList, RewardModelCard
from fgaif_ray.storage.stage_settings import language_key, reading_key

APP_NAME: Final = "rewards"
READY_TIMEOUT_S: Final = 300.0
MINIMUM_ONGOING_REQUESTS: Final = 32
LISTS_PER_REPLICA: Final = 2
"""Lists of up to `serve.max_batch_size` items that keep a replica busy: one is scored while the next one waits."""
BATCH_WAIT_S: Final = 0.01
"""Seconds that a replica waits for more lists to score together."""
HEAD_RESOURCE: Final = "node:__internal_head__"
HANDLE_FORMAT: Final = "verdicts-6"
"""Version of what goes in and out through the gateway's handle; a running service with another format is replaced."""


@dataclass(frozen=True, slots=True)
class RewardServiceInfo:
    """The address of a deployed reward service."""

    url: str
    app_name: str
    model_version: str


@dataclass(frozen=True, slots=True)
class ScorerSettings:
    """Settings of a reward deployment."""

    backbone: str
    dtype: str
    quantisation: str
    temperature_scaling: bool
    folders: dict[str, str]
    """Fact type -> folder of its reward model; all of them over one backbone."""
    max_batch_size: int
    threads: int | None
    versions: dict[str, str]
    """Fact type -> version of the model in its folder."""
    budget: PixelBudget
    """Of the images."""
    template: dict[str, Any]
    """Variables for the chat template."""
    images_per_prompt: int = 1
    """The most images of a prompt in the run."""


class RewardScorer:
    """A replica: a backbone and the reward models of one or more fact types."""

    def __init__(self, settings: ScorerSettings) -> None:
        import torch

        from fgaif_ray.rewards.model_files import load_reward_model
        from fgaif_ray.rewards.self_check import require_backbone
        from fgaif_ray.vlm.backbone import load_backbone

        keep_replica_on_loopback()
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        backbone = load_backbone(settings.backbone, settings.dtype, settings.quantisation, settings.template)
        backbone.move_to(worker_device())
        require_backbone(backbone, settings.images_per_prompt, settings.budget)
        self._model = load_reward_model(backbone, settings.folders, temperature_scaling=settings.temperature_scaling)
        self._versions = settings.versions
        self._budget = settings.budget
        # One thread: forward passes do not overlap, while the event loop collects the next batch.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="forward")
        self._score_merged.set_max_batch_size(settings.max_batch_size)  # type: ignore[attr-defined]
        self._score_merged.set_batch_wait_timeout_s(BATCH_WAIT_S)  # type: ignore[attr-defined]
        [[outcome]] = score_batches(self._model, tuple(self._versions), [probe_batch()])
        if isinstance(outcome, Exception):
            folders = ", ".join(dict.fromkeys(settings.folders.values()))
            raise UserError(f"The reward models in {folders} cannot be served ({outcome}): train them again.")

    async def score(self, batch: ScoringBatch) -> ScoredBatch:
        """Score one caller's batch of at most `serve.max_batch_size` items, in order."""
        return ScoredBatch(self._versions, await self._score_merged(batch))

    @serve.batch(batch_size_fn=lambda batches: sum(batch.size for batch in batches))
    async def _score_merged(self, batches: list[ScoringBatch]) -> list[list[ScoringOutcome]]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._score_now, batches)

    def _score_now(self, batches: list[ScoringBatch]) -> list[list[ScoringOutcome]]:
        began = time.monotonic()
        outcomes = score_batches(self._model, tuple(self._versions), batches, self._budget)
        record_batch(tuple(self._versions), outcomes, time.monotonic() - began)
        return outcomes


def deploy(config: Config, reward_folders: Mapping[str, str]) -> RewardServiceInfo:
    """Start the reward service on the connected Ray and wait until it has made a forward pass.

    A service that runs with the same models and settings stays as it is; with others, ``serve.replace`` says how it is
    replaced.

    Args:
        config: sections `serve`, `rewards` (backbone), `policy` (tokenizer), `align.reward` (composition) and `data`
            (pixel budget) matter.
        reward_folders: fact type -> folder or URI of its reward model.

    Raises:
        UserError: a model is missing, the port is taken, or the service would be open to the network without a token.
    """
    settings = _gateway_settings(config, reward_folders)
    version = settings.models.model_version
    name = config.serve.app_name
    running = _running(name)
    if running is not None and running[0] == settings.identity:
        return RewardServiceInfo(running[1], name, version)
    prefix = "" if name == APP_NAME else f"/{name}"
    serving = config.serve
    url = start_serve(serving.host, serving.port, name, serving.request_timeout_s, "serve") + prefix
    application = _application(config, reward_folders, replace(settings, url=url), _head_node())
    try:
        serve.run(application, name=name, route_prefix=prefix or "/", logging_config=QUIET)
    except RuntimeError as error:
        raise deployment_error(name, "the reward service") from error
    _wait_until_ready(url)
    return RewardServiceInfo(url, name, version)


def build_application(config: Config, reward_folders: Mapping[str, str], url: str) -> serve.Application:
    """Build the application that `deploy` runs, for those who run it by other means (see `actors.rewards.app`).

    Args:
        config: as in `deploy`.
        reward_folders: as in `deploy`.
        url: where it will be reached.

    Raises:
        UserError: a model is missing, or the service would be open to the network without a token.
    """
    return _application(config, reward_folders, replace(_gateway_settings(config, reward_folders), url=url))


def _gateway_settings(config: Config, reward_folders: Mapping[str, str]) -> GatewaySettings:
    """Build the settings without a URL.

    Raises:
        UserError: a model is missing, or the service would be open to the network without a token, or on a cluster
            that takes commands from anybody.
    """
    missing = [fact_type for fact_type in config.run.type_names if fact_type not in reward_folders]
    if missing:
        raise UserError(f"The reward service needs a reward model for {', '.join(missing)}: train it first.")
    token = read_callers_token(TOKEN_VARIABLE, config.ray, config.serve.host, "serve.host")
    card = _model_list(config, reward_folders)
    if card.kind == "coarse" and card.normalise_by_segments:
        raise UserError(
            "These reward models give one verdict per response: leave align.reward.normalise_by_segments at false, "
            "which would divide it by the number of segments."
        )
    if config.align.reward.unit == "fact" and not all(read_folder(one).counts_facts for one in reward_folders.values()):
        raise UserError(
            "align.reward.unit=fact pays each fact, and these reward models do not count facts: train them with "
            "rewards.fact_counts=true, or set align.reward.unit to segment."
        )
    digest = token_digest(token) if token is not None else None
    identity = fingerprint(
        HANDLE_FORMAT,
        card.model_dump(), digest, config.serve.model_dump(exclude={"replace"}), config.rewards.backbone,
        config.rewards.dtype, config.rewards.quantisation, resources.reward_scorers(config), config.policy.model,
        config.align.reward.model_dump(), *reading_key(config), *language_key(config),
    )  # fmt: skip
    return GatewaySettings(
        identity=identity,
        url="",
        models=card,
        tokenizer=config.policy.model,
        fact_types=config.run.types,
        options=RewardOptions(**_paid(config)),
        max_batch_size=config.serve.max_batch_size,
        max_waiting_items=math.ceil(config.serve.max_waiting_items / resources.reward_gateway(config).count),
        request_timeout_s=config.serve.request_timeout_s,
        max_wait_s=config.serve.max_wait_s,
        preparers=config.serve.preparers,
        budget=config.data.pixel_budget,
        language=config.data.language,
        lists_in_flight=LISTS_PER_REPLICA * max(config.serve.min_replicas, config.serve.max_replicas),
        token_digest=digest,
    )


def shutdown(app_name: str = APP_NAME) -> None:
    """Take the reward service of this name down; does nothing if there is none."""
    shutdown_application(app_name)


def _model_list(config: Config, folders: Mapping[str, str]) -> ModelList:
    scaled = config.rewards.temperature_scaling
    files = {fact_type: read_folder(folders[fact_type]) for fact_type in config.run.type_names}
    versions = {fact_type: found.served_version(scaled) for fact_type, found in files.items()}
    return ModelList(
        models=[
            RewardModelCard(
                id=fact_type,
                version=version,
                trained_on=read_trained_on(folders[fact_type]),
                domain=read_domain_card(folders[fact_type]),
            )
            for fact_type, version in versions.items()
        ],
        model_version=combined_version(versions),
        backbone=os.path.basename(config.rewards.backbone.rstrip("/")),
        tokenizer=os.path.basename(config.policy.model.rstrip("/")),
        placement=config.serve.placement,
        kind=kind_of(files),
        temperature_scaling=scaled,
        **_paid(config),
    )


def _paid(config: Config) -> dict[str, Any]:
    """The settings of rewards that are the service's: length and missing ends are the trainer's."""
    return config.align.reward.model_dump(
        include={"weights", "value", "unit", "false_cost", "granularity", "normalise_by_segments"}
    )


def _head_node() -> str:
    """Return the id of the proxy's node.

    The gateway goes there too: the proxy answers for a gateway that is lost with its node, with Ray's own message.
    """
    heads = (node["NodeID"] for node in ray.nodes() if node["Alive"] and HEAD_RESOURCE in node["Resources"])
    return str(next(heads))


def _application(
    config: Config,
    folders: Mapping[str, str],
    settings: GatewaySettings,
    gateway_node: str | None = None,
) -> serve.Application:
    versions = {card.id: card.version for card in settings.models.models}
    size = config.serve.max_batch_size

    def scorer(name: str, fact_types: tuple[str, ...]) -> serve.Application:
        replica = resources.reward_replica(config, name)
        deployment = serve.deployment(
            name=name,
            ray_actor_options=replica.options(),
            autoscaling_config=AutoscalingConfig(
                min_replicas=replica.count,
                max_replicas=replica.most or replica.count,
                target_ongoing_requests=LISTS_PER_REPLICA,
            ),
            max_ongoing_requests=max(size, MINIMUM_ONGOING_REQUESTS),  # Serve fills batches of no more than this
            max_constructor_retry_count=1,
            graceful_shutdown_wait_loop_s=0.5,
            graceful_shutdown_timeout_s=config.serve.request_timeout_s,
            max_surge_percent=100 if config.serve.replace == "rolling" else 0,
        )
        return deployment(RewardScorer).bind(
            ScorerSettings(
                backbone=config.rewards.backbone,
                dtype=config.rewards.dtype,
                quantisation=config.rewards.quantisation,
                temperature_scaling=config.rewards.temperature_scaling,
                folders={fact_type: folders[fact_type] for fact_type in fact_types},
                max_batch_size=size,
                threads=resources.reward_threads(config, len(fact_types)),
                versions={fact_type: versions[fact_type] for fact_type in fact_types},
                budget=config.data.pixel_budget,
                template=config.data.chat_template_kwargs,
                images_per_prompt=config.data.images_per_prompt,
            )
        )

    scorers = [scorer(name, fact_types) for name, fact_types in resources.reward_scorers(config).items()]
    request = resources.reward_gateway(config, gateway_node)
    gateway = serve.deployment(
        name="RewardGateway",
        num_replicas=request.count,
        ray_actor_options=request.options(),
        max_ongoing_requests=1024,  # the gateway turns requests away itself, with an answer of its own shape
        max_constructor_retry_count=1,
        graceful_shutdown_wait_loop_s=0.5,
        # What it has taken in waits for the models, also for those of another version that start meanwhile.
        graceful_shutdown_timeout_s=config.serve.request_timeout_s + PROXY_MARGIN_S,
        max_surge_percent=100,  # it asks for next to nothing
    )
    return gateway(serve.ingress()(RewardGateway)).bind(settings, scorers)


def serve_where_serve_listens(config: Config) -> Config:
    """Return the configuration with the address at which a running Serve listens, whatever it says itself.

    Who runs applications with `serve deploy` says there where Serve listens, and says nothing where it is 0.0.0.0.
    """
    client = _get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    if client is None or client.http_config.host is None:
        return config
    return change_config(config, [f"serve.host={client.http_config.host}", f"serve.port={client.http_config.port}"])


def _running(app_name: str) -> tuple[str, str] | None:
    """Return identity and URL of the running application, or None."""
    application = serve.status().applications.get(app_name)
    if application is None or application.status != ApplicationStatus.RUNNING:
        return None
    described: tuple[str, str] = serve.get_app_handle(app_name).describe.remote().result(timeout_s=READY_TIMEOUT_S)
    return described


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    with RewardClient(url) as client:
        while not client.is_ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the reward service at {url} is not ready after {READY_TIMEOUT_S:.0f} s")
            time.sleep(0.2)
