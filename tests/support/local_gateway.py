"""The reward service without Ray: its real gateway, routes and reward models in this process, behind real HTTP."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast
from uuid import uuid4

import uvicorn
from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from actors.rewards.gateway import GatewaySettings, RewardGateway
from actors.rewards.http import token_digest
from fgaif_ray.fact_types import DEFAULT
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rewards.scoring import ScoredBatch, ScoringBatch, combined_version, score_batches
from fgaif_ray.serving.wire import ModelList, RewardModelCard
from support.reward_helpers import CHECKPOINT, offline_model, save_reward_models

TOKEN = "a-token-of-the-tests"
WEIGHTS = {"existence": 1.0, "attribute": 0.5, "relation": 2.0}
VERSIONS = dict.fromkeys(FACT_TYPES, "1")


class LocalScorer:
    """What the gateway sees of a reward deployment: `scorer.score.remote(batch)`; scores in this process."""

    def __init__(self, folder: Path) -> None:
        self.model = offline_model(save_reward_models(folder))
        self.score = self
        self.batches: list[ScoringBatch] = []
        self.worker = ThreadPoolExecutor(max_workers=1)  # forward passes must not overlap

    async def remote(self, batch: ScoringBatch) -> ScoredBatch:
        self.batches.append(batch)
        return await asyncio.get_running_loop().run_in_executor(self.worker, self.score_now, batch)

    def score_now(self, batch: ScoringBatch) -> ScoredBatch:
        [outcomes] = score_batches(self.model, FACT_TYPES, [batch])
        return ScoredBatch(VERSIONS, outcomes)


def local_gateway(
    scorer: LocalScorer, options: RewardOptions, token: str | None = TOKEN, timeout_s: float = 60.0, **limits: Any
) -> RewardGateway:
    """The gateway; ``limits`` are further settings of it."""
    models = ModelList(
        models=[RewardModelCard(id=name, version=version) for name, version in VERSIONS.items()],
        model_version=combined_version(VERSIONS),
        backbone="policy",
        tokenizer="policy",
        placement="shared",
        weights=dict(options.weights),
        value=options.value,
        granularity=options.granularity,
        normalise_by_segments=options.normalise_by_segments,
        false_cost=options.false_cost,
    )
    settings = GatewaySettings(
        identity="test",
        url="",
        models=models,
        tokenizer=CHECKPOINT,
        options=options,
        request_timeout_s=timeout_s,
        token_digest=None if token is None else token_digest(token),
        fact_types=DEFAULT,
        **{"max_batch_size": 16, "max_waiting_items": 2048, **limits},
    )
    return RewardGateway(settings, [cast("DeploymentHandle[Any]", scorer)])


class BuildsApp(Protocol):
    """What Serve asks for the application of a replica."""

    def __serve_build_asgi_app__(self) -> FastAPI: ...


@contextmanager
def served(gateway: BuildsApp) -> Iterator[str]:
    """The URL at which the gateway answers; requests and answers get their id here, as they do from Serve's proxy."""
    app = gateway.__serve_build_asgi_app__()

    async def with_request_id(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        request_id = (b"x-request-id", uuid4().hex.encode())

        async def send_with_it(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], request_id]}
            await send(message)

        await app({**scope, "headers": [*scope["headers"], request_id]}, receive, send_with_it)

    config = uvicorn.Config(with_request_id, port=0, log_level="error", ws="none")
    server = uvicorn.Server(config)
    socket = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    token = os.environ.get("FGAIF_REWARD_TOKEN")
    os.environ["FGAIF_REWARD_TOKEN"] = TOKEN
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        if token is None:
            del os.environ["FGAIF_REWARD_TOKEN"]
        else:
            os.environ["FGAIF_REWARD_TOKEN"] = token
        server.should_exit = True
        thread.join()
        socket.close()
