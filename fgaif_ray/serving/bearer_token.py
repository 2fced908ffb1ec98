"""What a bearer token may be made of: the service and its clients look before it gets into a header.

HTTP libraries show a header that they cannot send in their error, and with it the token.
"""

import re
from typing import Final

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
