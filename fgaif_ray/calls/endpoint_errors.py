"""The meaning of an OpenAI-compatible endpoint's errors: retry, reject the row, or stop with one sentence."""

import math
import re
from email.utils import parsedate_to_datetime
from time import time
from typing import Final

import aiohttp
import openai

from fgaif_ray.calls.unusable import UnusableAnswer
from fgaif_ray.errors import UserError

EXCERPT: Final = 300
"""Characters of the endpoint's message in a rejected row."""

_NOT_SENT: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)
"""Errors of the HTTP client from before a request was sent."""
_OVERLOADED: Final = frozenset({429, 502, 503, 504})
_OF_THE_REQUEST: Final = frozenset({400, 413, 422, 451})
"""What an endpoint answers that works, to a request that it does not take."""
_NEVER: Final = frozenset({501, 505})
"""Server errors that another try does not mend."""
_SCHEMA_WORDS: Final = re.compile(r"response_format|json_schema|structured[ _]output|guided[ _](json|decoding)", re.I)


def may_pass(error: openai.APIError) -> bool:
    """Tell whether the same call may succeed later."""
    if isinstance(error, openai.APIStatusError):
        passing = error.status_code in (408, 409, 429) or error.status_code >= 500
        return passing and error.status_code not in _NEVER and not _out_of_quota(error)
    return isinstance(error, openai.APIConnectionError)  # time-outs among them


def may_be_billed(error: openai.APIError) -> bool:
    """Tell whether the endpoint may have worked on the call: it got the request and its answer did not arrive."""
    return isinstance(error, openai.APIConnectionError) and not isinstance(error.__cause__, _NOT_SENT)


def failure_reason(error: openai.APIError) -> str:
    """Name the kind of a failed call, for the ledger."""
    if isinstance(error, openai.APIStatusError):
        return f"status {error.status_code}"
    if isinstance(error, openai.APITimeoutError):
        return "timeout"
    return "connection" if isinstance(error, openai.APIConnectionError) else "response"


def retry_after_s(error: openai.APIError) -> float:
    """Return the seconds that ``Retry-After`` asks to wait, as a number or a date; 0 without it."""
    if not isinstance(error, openai.APIStatusError):
        return 0.0
    header = error.response.headers.get("retry-after")
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time()
        except ValueError:
            return 0.0
    return max(seconds, 0.0) if not math.isnan(seconds) else 0.0


def endpoint_failure(
    error: openai.APIError, where: str, model: str, *, section: str, has_key: bool, tries: int, timeout_s: float
) -> UserError | UnusableAnswer:
    """Interpret the error of a call that is not retried.

    Args:
        error: of the last try.
        where: the endpoint, as the first words of a sentence.
        model: name sent to it.
        section: of the configuration, where it can be corrected.
        has_key: whether an API key was sent.
        tries: number of tries that were allowed.
        timeout_s: seconds given to one.

    Returns:
        A ``UserError`` where the endpoint cannot be used, an ``UnusableAnswer`` where this row is rejected.
    """
    if isinstance(error, openai.APITimeoutError):
        return UnusableAnswer("timeout", f"no answer within {timeout_s:g} s")
    if isinstance(error, openai.APIConnectionError):
        return UserError(f"{where} cannot be reached: start it or correct {section}.base_url.")
    if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
        what = "refused the API key" if has_key else "wants an API key"
        return UserError(
            f"{where} {what} (status {error.status_code}): set the environment "
            f"variable named by {section}.api_key_env to a valid key."
        )
    if isinstance(error, openai.NotFoundError):
        return UserError(
            f"{where} has no model {model!r} or no chat completions: correct {section}.model or {section}.base_url."
        )
    if _out_of_quota(error):
        return UserError(f"{where} says that the quota is used up: add credit or use another key.")
    if _refuses_schema(error):
        return UserError(
            f"{where} does not support answers that follow a JSON schema (response_format) with model {model!r}: "
            f"set {section}.model or {section}.base_url to one that does."
        )
    if isinstance(error, openai.APIStatusError) and error.status_code in _OVERLOADED:
        return UserError(
            f"{where} stayed overloaded (status {error.status_code}) over {tries} tries: "
            f"lower {section}.concurrency or run again later."
        )
    if isinstance(error, openai.APIStatusError) and (
        error.status_code in _NEVER or (error.status_code < 500 and error.status_code not in _OF_THE_REQUEST)
    ):
        return UserError(
            f"{where} does not do chat completions with model {model!r} (status {error.status_code}): correct "
            f"{section}.base_url or {section}.model, then run the same command again."
        )
    if isinstance(error, openai.APIStatusError) and error.status_code < 500:
        return UnusableAnswer("rejected", f"the endpoint refused the request ({error.message[:EXCERPT]})")
    return UnusableAnswer("server", f"the endpoint failed on the request ({error.message[:EXCERPT]})")


def _out_of_quota(error: openai.APIError) -> bool:
    return "insufficient_quota" in (error.code, error.type)


def _refuses_schema(error: openai.APIError) -> bool:
    if not isinstance(error, openai.BadRequestError | openai.UnprocessableEntityError):
        return False
    return any(_SCHEMA_WORDS.search(str(words)) for words in (error.param, error.code, error.message) if words)
