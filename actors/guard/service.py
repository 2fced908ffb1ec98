"""The guard as a Serve application that grows with the requests in flight."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Final

from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import RayServeException

from actors import metrics
from actors.cluster.authentication import read_callers_token
from actors.cluster.connect import HasRay
from actors.cluster.loopback import keep_replica_on_loopback
from actors.cluster.serve import QUIET, deployment_error, shutdown_application, start_serve
from actors.guard.answers import GuardedAnswers, wanted_answers
from actors.guard.http import build_app
from actors.guard.judge import AnswerJudge
from actors.guard.metrics import record_answer
from actors.guard.streams import GuardedStreams
from actors.guard.upstream import Json, Upstream
from actors.rewards.http import token_digest
from actors.rewards.service_error import ServiceError
from fgaif_ray.cluster import resources
from fgaif_ray.config import ChatGuardConfig
from fgaif_ray.errors import UserError
from fgaif_ray.serving.admission import QueueAdmission
from fgaif_ray.serving.bearer_token import read_token
from fgaif_ray.serving.wire import TOKEN_VARIABLE

GUARD_TOKEN_VARIABLE: Final = "FGAIF_GUARD_TOKEN"
"""Environment variable that holds the token of the guard's callers."""
KEY_VARIABLE: Final = "OPENAI_API_KEY"
"""Environment variable that holds the key of the endpoint."""
PATH_TAKEN: Final = "is being used by application"
"""In Serve's message about a path."""
TOGETHER: Final = 8
"""Answers in flight that keep an endpoint busy: with as many the rate of answers is measured."""


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """Settings of a replica; secrets are not shown."""

    config: ChatGuardConfig
    upstream: str
    rewards: str
    token_digest: str | None = None
    key: str | None = field(default=None, repr=False)
    """Of the endpoint."""
    rewards_token: str | None = field(default=None, repr=False)


class ChatGuard:
    """A replica: it admits requests, and has them answered and judged."""

    def __init__(self, settings: GuardSettings) -> None:
        config = settings.config
        self._settings = settings
        self._upstream = Upstream(settings.upstream, settings.key, config.request_timeout_s)
        self._judge = AnswerJudge(settings.rewards, settings.rewards_token, config.request_timeout_s)
        self._answers = GuardedAnswers(self._upstream, self._judge, config)
        self._streams = GuardedStreams(self._upstream, self._judge, config, self._answers)
        self._admission = QueueAdmission(config.max_waiting_answers, config.max_wait_s, TOGETHER)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self, self._settings.token_digest, record_answer)

    def check_capacity(self, count: int = 1) -> None:
        """Return if so many more answers may wait.

        Raises:
            ServiceError: 429, with the time after which they probably may.
        """
        retry_after_s = self._admission.refusal(count)
        if retry_after_s is not None:
            raise ServiceError(429, "busy", "too many answers are being written: try again later", retry_after_s)

    async def answer(self, body: Json) -> Json:
        """Answer ``POST /v1/chat/completions``.

        Raises:
            ServiceError: the guard is full, the endpoint has no answer, or it cannot be judged.
        """
        count = self._enter(body)
        done = 0
        try:
            async with asyncio.timeout(self._settings.config.request_timeout_s):
                answer = await self._answers.answer(body)
            done = count
            return answer
        except TimeoutError as error:
            raise ServiceError(504, "timeout", "the answer was not ready in time") from error
        finally:
            self._leave(count, done)

    async def events(self, body: Json) -> AsyncGenerator[bytes]:
        """Answer it as a stream; raises ServiceError as ``answer`` does."""
        count = self._enter(body)
        done = 0
        events = self._streams.events(body)
        try:
            async for event in events:
                yield event
            done = count
        finally:
            await events.aclose()
            self._leave(count, done)

    async def list_models(self) -> Json:
        """Answer ``GET /v1/models``; raises ServiceError where the endpoint does not."""
        return await self._upstream.models()

    async def check_ready(self) -> None:
        """Return where endpoint and reward service answer.

        Raises:
            ServiceError: 503 where one does not.
        """
        try:
            await self._upstream.models()
        except ServiceError as error:
            raise ServiceError(503, "not_ready", f"not ready: {error}", 1) from error
        if not await self._judge.is_ready():
            raise ServiceError(503, "not_ready", "not ready: the reward service cannot score yet", 1)

    async def close(self) -> None:
        """Close the connections."""
        await self._upstream.close()
        await self._judge.close()

    def _enter(self, body: Json) -> int:
        config = self._settings.config
        count = config.n if config.mode == "best-of-n" else wanted_answers(body)
        self.check_capacity(count)
        self._admission.enter(count)
        metrics.GUARD_WAITING_ANSWERS.set(self._admission.waiting)
        return count

    def _leave(self, count: int, done: int) -> None:
        self._admission.leave(count, done)
        metrics.GUARD_WAITING_ANSWERS.set(self._admission.waiting)


class GuardReplica(ChatGuard):
    """The guard in a replica of Serve."""

    def __init__(self, settings: GuardSettings) -> None:
        keep_replica_on_loopback()
        super().__init__(settings)


def guard_settings(config: HasRay, guard: ChatGuardConfig, rewards: str, key: str | None) -> GuardSettings:
    """Collect what a replica needs from configuration and environment.

    Args:
        config: its ``ray`` section says how open the cluster is.
        guard: the settings.
        rewards: root of the reward service.
        key: of the endpoint.

    Raises:
        UserError: there is no endpoint, a token cannot be sent, or the guard would be open to the network without one.
    """
    upstream = guard.upstream
    if upstream is None or not upstream.startswith(("http://", "https://")):
        raise UserError("Give the endpoint to guard: --upstream http://HOST:PORT/v1 (guard.upstream).")
    if not rewards.startswith(("http://", "https://")):
        raise UserError(f"guard.rewards needs to be the URL of a reward service, not {rewards!r}.")
    token = read_callers_token(GUARD_TOKEN_VARIABLE, config.ray, guard.host, "guard.host")
    return GuardSettings(
        config=guard,
        upstream=upstream,
        rewards=rewards.rstrip("/"),
        token_digest=token_digest(token) if token is not None else None,
        key=key,
        rewards_token=read_token(TOKEN_VARIABLE),
    )


def build_application(settings: GuardSettings) -> serve.Application:
    """Build the Serve application."""
    guard = settings.config
    replica = resources.guard_replica(guard)
    deployment = serve.deployment(
        name="ChatGuard",
        ray_actor_options=replica.options(),
        autoscaling_config=AutoscalingConfig(
            min_replicas=replica.count,
            max_replicas=replica.most or replica.count,
            target_ongoing_requests=guard.target_requests,
        ),
        max_ongoing_requests=1024,  # the guard turns requests away itself, with an answer of its own shape
        max_constructor_retry_count=1,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=guard.request_timeout_s,
    )
    return deployment(serve.ingress()(GuardReplica)).bind(settings)


def deploy(settings: GuardSettings) -> str:
    """Start the guard on the connected Ray; returns its URL, without ``/v1``.

    Raises:
        UserError: the port or the path is taken.
    """
    guard = settings.config
    root = start_serve(guard.host, guard.port, guard.app_name, guard.request_timeout_s, "guard")
    try:
        serve.run(
            build_application(settings),
            name=guard.app_name,
            route_prefix=guard.route_prefix,
            logging_config=QUIET,
        )
    except RayServeException as error:
        if PATH_TAKEN not in str(error):
            raise
        raise UserError(
            f"Another application of Serve answers at {guard.route_prefix} already: set guard.route_prefix to another "
            "path, e.g. /guard."
        ) from error
    except RuntimeError as error:
        raise deployment_error(guard.app_name, "the guard") from error
    return root + guard.route_prefix.rstrip("/")


def shutdown(app_name: str) -> None:
    """Take the guard of this name down; does nothing if there is none."""
    shutdown_application(app_name)
