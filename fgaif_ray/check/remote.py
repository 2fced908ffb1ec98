"""Checks by a running reward service."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fgaif_ray.check.questions import CheckResult, TextToCheck
from fgaif_ray.errors import ItemError, UserError
from fgaif_ray.serving.client import RewardClient, RewardServiceError, check_item
from fgaif_ray.serving.wire import TOKEN_VARIABLE

_PLACE: Final = re.compile(r"^items\[\d+\]: ")
"""Of an item in a request, which is not its place in a batch."""


@dataclass(frozen=True, slots=True)
class RemoteChecker:
    """The reward models of a service."""

    client: RewardClient
    url: str
    """For messages."""

    def check_each(self, texts: Sequence[TextToCheck]) -> list[CheckResult]:
        """Check texts, in order.

        Raises:
            UserError: the service does not answer, or not with checks.
        """
        items = [check_item(text.images, text.response, text.prompt) for text in texts]
        try:
            outcomes = self.client.check_each(items)
        except RewardServiceError as error:
            raise UserError(f"{self.url} cannot check texts ({error}): {_advice(error)}.") from error
        return [
            ItemError(outcome.code, _PLACE.sub("", str(outcome).partition(f"{outcome.code}: ")[2]))
            if isinstance(outcome, RewardServiceError)
            else outcome
            for outcome in outcomes
        ]


def _advice(error: RewardServiceError) -> str:
    if error.status == 401:
        return f"set {TOKEN_VARIABLE} to the token of the service"
    if error.status in (404, 405):
        return "see that it is the root of a reward service that has POST /v1/check"
    return "see that a reward service runs there, or try again later"
