"""The HTTP interface of the reward service: routes, limits, errors. It uses neither Ray nor torch."""

import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from actors.rewards.bodies import MAX_HELD_BYTES, HeldBodies
from actors.rewards.service_error import ServiceError
from fgaif_ray.fact_types import FactType, type_names
from fgaif_ray.serving import api_page
from fgaif_ray.serving.playground import build_playground
from fgaif_ray.serving.remote_reward import remote_answer
from fgaif_ray.serving.wire import (
    CheckedResponse,
    CheckRequest,
    CheckResponse,
    ErrorDetail,
    ErrorResponse,
    ModelList,
    RemoteRewardRequest,
    RemoteRewardResponse,
    RewardRequest,
    RewardResponse,
    ScoredResponse,
    Status,
    spread_types,
)

logger = logging.getLogger(__name__)

OPEN_PATHS: Final = api_page.PATHS | {"/", "/live", "/ready", "/openapi.json", "/playground"}
"""Routes without a token: whether the service is up, how to use it, and a page that asks for the token itself."""

BODY_PATHS: Final = frozenset({"/v1/rewards", "/v1/check", "/get_reward"})
"""Routes that take a body. Elsewhere a POST is refused for its method or path, whatever it carries."""


LONGEST_NAME: Final = 100
"""Characters of a field's name in an error: an unknown one is the caller's, of any length."""


class HasCapacity(Protocol):
    """A backend that turns requests away while it is full."""

    def check_capacity(self) -> None:
        """Return if one more item may wait; raises ServiceError."""
        ...


class RewardBackend(HasCapacity, Protocol):
    """The interface behind the routes; it raises ServiceError."""

    async def score_request(self, request: RewardRequest) -> list[ScoredResponse]:
        """Return one result per item, in order."""
        ...

    async def check_request(self, request: CheckRequest) -> list[CheckedResponse]:
        """Return one result per item, in order."""
        ...

    async def score_remote(self, request: RemoteRewardRequest) -> list[ScoredResponse]:
        """Return one result per query, in order."""
        ...

    async def check_ready(self) -> None:
        """Return once an item has been prepared, and the models have recently made a forward pass."""
        ...

    def models(self) -> ModelList:
        """Return what is served."""
        ...


def token_digest(token: str) -> str:
    """Return the digest that the service keeps of its bearer token."""
    return hashlib.sha256(token.encode()).hexdigest()


Observer = Callable[[str, int, str | None, float], None]
"""Callback for every answer: path, status (0 where there was none), code of the error, seconds."""


Respond = Callable[[ServiceError, MutableMapping[str, Any]], JSONResponse]
"""Makes the answer of an error to the request with this state."""


def note_error(error: ServiceError, state: MutableMapping[str, Any]) -> dict[str, str]:
    """Log an error by the id of its request, and keep its code in the request's state; returns the answer's headers."""
    state["error_code"] = error.code
    level = logging.WARNING if error.status >= 500 else logging.INFO
    logger.log(level, "request %s: %d %s", state["request_id"], error.status, error.code)
    headers = {"retry-after": str(error.retry_after_s)} if error.retry_after_s is not None else {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def _answer(error: ServiceError, state: MutableMapping[str, Any]) -> JSONResponse:
    headers = note_error(error, state)
    detail = ErrorDetail(code=error.code, message=str(error), request_id=state["request_id"])
    return JSONResponse(ErrorResponse(error=detail).model_dump(), error.status, headers)


@dataclass(frozen=True, slots=True)
class Guard:
    """ASGI middleware: bearer token, room in the queue, content type and size of the body, before anything is parsed.

    The request id is the caller's `x-request-id`, or what Serve's proxy has put there; the proxy answers with it.
    """

    app: ASGIApp
    digest: str | None
    """`token_digest` of the wanted token; None lets everyone in."""
    observe: Observer
    backend: HasCapacity
    """Says whether there is room, before a body is read for it."""
    bodies: HeldBodies
    open_paths: frozenset[str] = OPEN_PATHS
    body_paths: frozenset[str] = BODY_PATHS
    respond: Respond = _answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = headers["x-request-id"]
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        # An application that is not at the root gets its prefix in both.
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        began, status = time.monotonic(), 0

        async def send_noticed(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            if path not in self.open_paths:
                self._authorise(headers)
            if scope["method"] == "POST" and path in self.body_paths:
                self.backend.check_capacity()
                with self.bodies.reading() as reading:
                    await self.app(scope, await reading.body(headers, receive), send_noticed)
                return
            await self.app(scope, receive, send_noticed)
        except ServiceError as error:
            await self.respond(error, state)(scope, receive, send_noticed)
        except Exception:
            logger.exception("request %s failed", request_id)
            if status:
                raise
            failure = ServiceError(
                500, "internal_error", "the service failed; its log has the cause under the request id"
            )
            await self.respond(failure, state)(scope, receive, send_noticed)
        finally:
            self.observe(path, status, state.get("error_code"), time.monotonic() - began)

    def _authorise(self, headers: dict[str, str]) -> None:
        if self.digest is None:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token_digest(token.strip()), self.digest):
            raise ServiceError(401, "unauthorized", "send the service's token as `Authorization: Bearer TOKEN`")


def _validation_message(error: RequestValidationError) -> str:
    """Describe place and mistake without the input: images and texts do not belong in errors and logs."""
    first = error.errors()[0]
    place = ""
    for part in first["loc"][1:]:
        place += f"[{part}]" if isinstance(part, int) else f".{part[:LONGEST_NAME]}"
    return f"{place.removeprefix('.') or 'body'}: {first['msg'].removeprefix('Value error, ')}"


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def add_error_handlers(app: FastAPI, respond: Respond) -> None:
    """Have every error of the routes answered in one form."""

    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError) -> JSONResponse:
        return respond(error, request.scope["state"])

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        failure = ServiceError(422, "invalid_request", _validation_message(error))
        return respond(failure, request.scope["state"])

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "not_found", 405: "method_not_allowed"}
        failure = ServiceError(error.status_code, codes.get(error.status_code, "http_error"), error.detail)
        answer = respond(failure, request.scope["state"])
        answer.headers.update(error.headers or {})
        return answer


def add_api_page(app: FastAPI) -> None:
    """Add the page that documents the interface and tries it."""

    def show(file: api_page.PageFile) -> Callable[[], Awaitable[Response]]:
        async def shown() -> Response:
            return Response(file.content, media_type=file.media_type, headers=api_page.HEADERS)

        return shown

    for path, file in api_page.read_page_files().items():
        app.get(path, include_in_schema=False)(show(file))


def build_app(backend: RewardBackend, digest: str | None, observe: Observer, fact_types: Sequence[FactType]) -> FastAPI:
    """The FastAPI application of the gateway.

    Args:
        backend: scores what has passed the checks.
        digest: `token_digest` of the bearer token; None serves without one.
        observe: is told of every answer.
        fact_types: what is scored.
    """
    types = type_names(fact_types)
    app = FastAPI(
        title="FGAIF reward service",
        summary=f"Dense rewards for image descriptions: {_and(types)}, per segment",
        version="1",
        docs_url=None,  # FastAPI's page loads Swagger UI from another site
        redoc_url=None,
        redirect_slashes=False,  # it would redirect to whatever host the request names
    )
    app.add_middleware(Guard, digest=digest, observe=observe, backend=backend, bodies=HeldBodies(MAX_HELD_BYTES))

    add_error_handlers(app, _answer)

    def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
        return {status: {"model": ErrorResponse} for status in statuses}

    bearer = [Security(HTTPBearer(auto_error=False))] if digest is not None else []
    page = build_playground(fact_types, token_needed=digest is not None)
    refused = errors(400, 401, 413, 415, 422, 429, 500, 503, 504)

    @app.post("/v1/rewards", responses=refused, dependencies=bearer)
    async def rewards(body: RewardRequest, request: Request) -> RewardResponse:
        """Score responses: verdicts and rewards per segment, and per token where ids are given."""
        results = await backend.score_request(body)
        version = backend.models().model_version
        return RewardResponse(results=results, model_version=version, request_id=request.state.request_id)

    @app.post("/v1/check", responses=refused, dependencies=bearer)
    async def check(body: CheckRequest, request: Request) -> CheckResponse:
        """Check texts about images: a verdict per segment and type, and one hallucination score."""
        results = await backend.check_request(body)
        version = backend.models().model_version
        return CheckResponse(results=results, model_version=version, request_id=request.state.request_id)

    @app.post("/get_reward", responses=refused, dependencies=bearer)
    async def get_reward(body: RemoteRewardRequest) -> RemoteRewardResponse:
        """OpenRLHF's remote-reward protocol; the image travels in the label."""
        return remote_answer(await backend.score_remote(body), backend.models().weights)

    @app.get("/v1/models", responses=errors(401), dependencies=bearer)
    async def models() -> ModelList:
        """The reward models and how their verdicts are composed."""
        return backend.models()

    describe = app.openapi

    def openapi() -> dict[str, Any]:
        """The interface with the fact types of this service."""
        if app.openapi_schema is None:
            spread_types(describe()["components"]["schemas"]["SegmentReward"], types)
        return describe()

    app.openapi = openapi  # type: ignore[method-assign]

    @app.get("/live")
    async def live() -> Status:
        """Whether the gateway runs."""
        return Status(status="live", model_version=backend.models().model_version)

    add_api_page(app)

    @app.get("/", include_in_schema=False)
    async def start() -> RedirectResponse:
        """Lead to the playground, relative to this address: the host that a request names is not to be trusted."""
        return RedirectResponse("playground")

    @app.get("/playground", include_in_schema=False)
    async def playground() -> HTMLResponse:
        """A page on which a person tries the reward models."""
        return HTMLResponse(page.html, headers=page.headers)

    @app.get("/ready", responses=errors(503))
    async def ready() -> Status:
        """Whether requests can be prepared, and all models have recently made a forward pass."""
        await backend.check_ready()
        return Status(status="ready", model_version=backend.models().model_version)

    return app
