"""The HTTP interface of the guard: OpenAI's chat completions and models, its limits and errors."""

from collections.abc import AsyncGenerator, AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final, Protocol

from fastapi import FastAPI, Security
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from actors.guard.upstream import Json
from actors.rewards.bodies import MAX_HELD_BYTES, HeldBodies
from actors.rewards.http import (
    Guard,
    HasCapacity,
    Observer,
    add_api_page,
    add_error_handlers,
    note_error,
)
from actors.rewards.service_error import ServiceError
from fgaif_ray.guard.sse import MEDIA_TYPE, write_event
from fgaif_ray.serving import api_page
from fgaif_ray.serving.wire import EXAMPLE_IMAGE, EXAMPLE_PROMPT

OPEN_PATHS: Final = api_page.PATHS | {"/live", "/ready", "/openapi.json"}
"""Routes without a token."""
CHAT_PATH: Final = "/v1/chat/completions"
_TYPES: Final = {401: "authentication_error", 429: "rate_limit_error"}
MOST_ANSWERS: Final = 128
"""Of a request, as OpenAI has it."""


class ChatRequest(BaseModel):
    """Body of `POST /v1/chat/completions`: OpenAI's, passed on to the endpoint with all its fields."""

    model_config = ConfigDict(
        extra="allow",
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "model": "base",
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {
                                    "type": "image_url",
                                    "image_url": {"url": f"data:image/png;base64,{EXAMPLE_IMAGE}"},
                                },
                                {"type": "text", "text": EXAMPLE_PROMPT},
                            ],
                        }
                    ],
                }
            ]
        },
    )

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, fail_fast=True)]
    """The conversation. Images are data URLs; the guard opens no links."""
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    stream: bool | None = None


class GuardError(BaseModel):
    """What went wrong, in OpenAI's form."""

    message: str
    type: str
    code: str
    param: None = None


class GuardErrorResponse(BaseModel):
    """The one shape of every error."""

    error: GuardError


class GuardStatus(BaseModel):
    """Answer of `/live` and `/ready`."""

    status: str


class GuardBackend(HasCapacity, Protocol):
    """The interface behind the routes; it raises ServiceError."""

    async def answer(self, body: Json) -> Json:
        """Return a chat completion with its verdicts."""
        ...

    def events(self, body: Json) -> AsyncGenerator[bytes]:
        """Yield the events of a streamed one."""
        ...

    async def list_models(self) -> Json:
        """Return the models of the endpoint."""
        ...

    async def check_ready(self) -> None:
        """Return where endpoint and reward service answer."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


def error_body(error: ServiceError) -> Json:
    """An error in OpenAI's form."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    detail = GuardError(message=str(error), type=kind, code=error.code)
    return GuardErrorResponse(error=detail).model_dump()


def respond(error: ServiceError, state: MutableMapping[str, Any]) -> JSONResponse:
    """Answer a request with an error."""
    headers = note_error(error, state)
    return JSONResponse(error_body(error), error.status, headers)


def build_app(backend: GuardBackend, digest: str | None, observe: Observer) -> FastAPI:
    """The FastAPI application of the guard.

    Args:
        backend: answers what has passed the checks.
        digest: `token_digest` of the bearer token; None serves without one.
        observe: is told of every answer.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await backend.close()

    app = FastAPI(
        title="FGAIF guard",
        summary="Chat completions about images, judged by reward models before they are sent",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.add_middleware(
        Guard,
        digest=digest,
        observe=observe,
        backend=backend,
        bodies=HeldBodies(MAX_HELD_BYTES),
        open_paths=OPEN_PATHS,
        body_paths=frozenset({CHAT_PATH}),
        respond=respond,
    )
    add_error_handlers(app, respond)

    def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
        return {status: {"model": GuardErrorResponse} for status in statuses}

    bearer = [Security(HTTPBearer(auto_error=False))] if digest is not None else []
    refused = errors(400, 401, 404, 413, 415, 422, 429, 500, 502, 504)

    @app.post(CHAT_PATH, responses=refused, dependencies=bearer, response_model=None)
    async def chat_completions(body: ChatRequest) -> Response:
        """A chat completion; each choice has its verdicts in the field `fgaif`."""
        request = body.model_dump(exclude_unset=True)
        if not body.stream:
            return JSONResponse(await backend.answer(request))
        events = backend.events(request)
        first = await anext(events)  # an error before it has a status of its own
        return StreamingResponse(_from_first(first, events), media_type=MEDIA_TYPE)

    @app.get("/v1/models", responses=errors(400, 401, 404, 429, 502, 504), dependencies=bearer, response_model=None)
    async def models() -> Response:
        """The models of the endpoint."""
        return JSONResponse(await backend.list_models())

    @app.get("/live")
    async def live() -> GuardStatus:
        """Whether the guard runs."""
        return GuardStatus(status="live")

    @app.get("/ready", responses=errors(503))
    async def ready() -> GuardStatus:
        """Whether endpoint and reward service answer."""
        await backend.check_ready()
        return GuardStatus(status="ready")

    add_api_page(app)
    return app


async def _from_first(first: bytes, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The events of a stream that has begun; an error is its last one, in the form in which OpenAI sends it."""
    try:
        yield first
        async for event in events:
            yield event
    except ServiceError as error:
        yield write_event(error_body(error))
    finally:
        await events.aclose()
