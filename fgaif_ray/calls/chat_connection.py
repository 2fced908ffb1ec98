"""Chat completions over HTTP: the OpenAI SDK's settings and errors, and calls through aiohttp.

The SDK says where to call and with which headers (its environment variables among them), and its errors tell what went
wrong. The call itself bypasses it: building a request and reading an answer takes the SDK over a millisecond of
processor time, three times as long as aiohttp takes for all of it, so that one process could not keep a hundred calls
of 100 ms in flight.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx2
import openai

from fgaif_ray.calls.chat_json import MessagesEncoder

PATH: Final = "chat/completions"
_MESSAGES: Final = MessagesEncoder(json.JSONEncoder())
_NO_KEY: Final = "none"  # the SDK needs a key; servers without authentication ignore it
_STATUS_ERRORS: Final[dict[int, type[openai.APIStatusError]]] = {
    400: openai.BadRequestError,
    401: openai.AuthenticationError,
    403: openai.PermissionDeniedError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    422: openai.UnprocessableEntityError,
    429: openai.RateLimitError,
}


@dataclass(frozen=True, slots=True)
class Completion:
    """The first choice of a chat completion; endpoints leave fields out, or send something else in them."""

    content: str | None
    finish_reason: str | None
    refusal: str | None
    tokens: tuple[int, int] | None
    """Prompt and completion tokens where the endpoint counts them."""

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Self:
        """Parse an answer's body without trusting its form."""
        choices = body.get("choices")
        choice = _mapping(choices[0] if isinstance(choices, list) and choices else None)
        message, usage = _mapping(choice.get("message")), _mapping(body.get("usage"))
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        return cls(
            _text(message.get("content")),
            _text(choice.get("finish_reason")),
            _text(message.get("refusal")),
            (prompt, completion) if isinstance(prompt, int) and isinstance(completion, int) else None,
        )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


class Bodies:
    """The bodies of requests that differ only in their messages: the shared part is encoded once.

    Example: ``Bodies({"model": "m"})([{"role": "user", "content": "Hello."}])``
    """

    def __init__(self, shared: Mapping[str, Any]) -> None:
        """Encode what the requests share; it is JSON-serialisable."""
        self._rest = b", " + json.dumps(dict(shared)).encode()[1:]

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> bytes:
        """Build the body of one request."""
        return b'{"messages": ' + _MESSAGES(messages).encode() + self._rest


def _proxy(url: httpx2.URL) -> str | None:
    """Return the proxy that the environment names for a URL."""
    return None if proxy_bypass(url.host) else getproxies().get(url.scheme)


class ChatConnection:
    """Connections to one endpoint; they belong to the event loop in which they were made.

    Example: ``await ChatConnection(url, None, timeout_s=60).post(Bodies({"model": "m"})(messages))``
    """

    def __init__(self, base_url: str | None, api_key: str | None, timeout_s: float) -> None:
        """Prepare the connection without calling anything.

        Args:
            base_url: endpoint, up to and with ``/v1``; None is the SDK's default.
            api_key: bearer token; None for an endpoint without authentication.
            timeout_s: seconds for one call, from the connection to the last byte of the answer.
        """
        client = openai.AsyncOpenAI(base_url=base_url, api_key=api_key or _NO_KEY)
        headers = {**client.default_headers, **client.auth_headers}
        self._url = f"{client.base_url}{PATH}"
        self._session = aiohttp.ClientSession(
            # The caller limits its calls.
            connector=aiohttp.TCPConnector(limit=0, ssl=httpx2.create_ssl_context()),
            headers={name: value for name, value in headers.items() if isinstance(value, str)},
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Not `trust_env`, which looks for a proxy in a thread at every call.
            proxy=_proxy(client.base_url),
        )

    async def post(self, body: bytes) -> Completion | None:
        """Ask for a completion, once.

        Args:
            body: of the request, from ``Bodies``.

        Returns:
            The completion; None where the answer is not a JSON object, such as a web page.

        Raises:
            openai.APIError: the call failed; its cause is aiohttp's error where there was no answer.
        """
        try:
            async with self._session.post(self._url, data=body) as response:
                content = await response.read()
        except TimeoutError as error:
            raise openai.APITimeoutError(self._request()) from error
        except (aiohttp.ClientError, OSError) as error:
            raise openai.APIConnectionError(request=self._request()) from error
        if response.status >= 400:
            raise self._status_error(response, content)
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            return None
        return Completion.from_json(answer) if isinstance(answer, Mapping) else None

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    def _request(self) -> httpx2.Request:
        return httpx2.Request("POST", self._url)

    def _status_error(self, response: aiohttp.ClientResponse, content: bytes) -> openai.APIStatusError:
        """Build the SDK's error for a status, with the endpoint's message."""
        headers = [(name, value) for name, value in response.headers.items() if name.lower() != "content-encoding"]
        answer = httpx2.Response(response.status, headers=headers, content=content, request=self._request())
        text = answer.text.strip()
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):
            body = text
        details = body.get("error", body) if isinstance(body, Mapping) else body
        message = details.get("message") if isinstance(details, Mapping) else None
        words = f"Error code: {response.status}" + (f" - {message}" if isinstance(message, str) and message else "")
        kind = openai.InternalServerError if response.status >= 500 else _STATUS_ERRORS.get(response.status)
        return (kind or openai.APIStatusError)(words, response=answer, body=details)
