"""What a bearer token may be made of: the service and its clients look before it gets into a header.

HTTP libraries show a header that they cannot send in their error, and with it the token.
"""

import os
import re
from typing import Final

from fgaif_ray.errors import UserError

_SENDABLE: Final = re.compile(r"[\x21-\x7e]+")
"""Visible ASCII."""


def check_token(token: str, name: str = "the bearer token") -> str:
    """Return a token that a header can carry.

    Raises:
        ValueError: it cannot; the message names the token by ``name`` and does not show it.
    """
    if not _SENDABLE.fullmatch(token):
        raise ValueError(
            f"{name} has white space, a line break or a character beyond ASCII, which no HTTP header carries: take it "
            "out (a file often ends with a line break)"
        )
    return token


def read_token(variable: str) -> str | None:
    """Return the bearer token that an environment variable holds; None where it is not set or empty.

    Raises:
        UserError: no client could send it.
    """
    token = os.environ.get(variable)
    try:
        return check_token(token, variable) if token else None
    except ValueError as error:
        raise UserError(f"{error}.") from error
