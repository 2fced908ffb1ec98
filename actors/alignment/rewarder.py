"""Asking the reward service, from inside the cluster, for the dense rewards of a batch."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from fgaif_ray.records import FACT_TYPES

logger = logging.getLogger(__name__)

ATTEMPTS: Final = 4
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0
PATIENCE_S: Final = 900.0
"""How long a service that answers nothing at all is asked: a machine in place of a lost one takes minutes to come."""

TRANSIENT: Final = (RayServeException, RayError, TimeoutError)
"""What a call raises while a replica or the gateway dies, is replaced, is slow, or fails: worth another try."""


@dataclass(frozen=True, slots=True)
class TypeVerdicts:
    """What the reward models say about one response, or why nothing could be had."""

    spans: tuple[tuple[int, int], ...] = ()
    """``[segments]`` start and end character of each sub-sentence."""
    token_ends: tuple[int, ...] = ()
    """``[segments]`` index of the sampled token that ends it."""
    response: str = ""
    """The text that the spans refer to."""
    probabilities: tuple[tuple[tuple[float, ...], ...], ...] | None = None
    """``[segments, types, classes]``; None where the reward could not be had."""
    failure: str | None = None
    refused: bool = False
    """Whether the service has looked at the response and cannot score it: asking again changes nothing."""


class Rewarder:
    """Asks for rewards in parts and tries again what failed for a passing reason.

    Example: ``Rewarder("rewards", 60.0, 64).score([{"image": data, "prompt": text, "response": None,
    "response_token_ids": [5, 9, 2]}])``
    """

    def __init__(
        self,
        app_name: str,
        timeout_s: float,
        part_size: int,
        pause: Callable[[float], None] = time.sleep,
        patience_s: float = PATIENCE_S,
        types: Sequence[str] = FACT_TYPES,
    ) -> None:
        """Looks nothing up yet.

        Args:
            app_name: the Serve application.
            timeout_s: how long one part may take.
            part_size: items of one call.
            pause: waits between two tries.
            patience_s: how long to go on while no item at all is answered.
            types: the fact types of the run, in the order that probabilities are to have.
        """
        self._app_name, self._timeout_s, self._part_size, self._pause = app_name, timeout_s, part_size, pause
        self._patience_s, self._types = patience_s, tuple(types)

    def score(self, items: Sequence[dict[str, Any]]) -> list[TypeVerdicts]:
        """Verdicts in order, one per item (see `RewardGateway.score_responses` for what an item holds)."""
        verdicts = [TypeVerdicts(failure="not asked") for _ in items]
        missing = list(range(len(items)))
        give_up = time.monotonic() + self._patience_s
        for attempt in count():
            if attempt:
                self._pause(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (attempt - 1)))
            for index, answer in zip(missing, self._ask([items[index] for index in missing]), strict=True):
                verdicts[index] = answer
            missing = [index for index in missing if verdicts[index].failure and not verdicts[index].refused]
            # What fails beside others that are answered may be what ends the replicas.
            down = len(missing) == len(items) and time.monotonic() < give_up
            if not missing or (attempt + 1 >= ATTEMPTS and not down):
                break
        failures = [verdict.failure for verdict in verdicts if verdict.failure is not None]
        if failures:
            logger.warning("%d of %d rewards missing: %s", len(failures), len(items), failures[0])
        return verdicts

    def _ask(self, items: list[dict[str, Any]]) -> list[TypeVerdicts]:
        parts = [items[start : start + self._part_size] for start in range(0, len(items), self._part_size)]
        try:
            handle = serve.get_app_handle(self._app_name)
            calls = [handle.score_responses.remote(part) for part in parts]
        except TRANSIENT as error:
            return [TypeVerdicts(failure=_reason(error)) for _ in items]
        verdicts: list[TypeVerdicts] = []
        for part, call in zip(parts, calls, strict=True):
            try:
                answers = call.result(timeout_s=self._timeout_s)
            except TRANSIENT as error:
                verdicts += [TypeVerdicts(failure=_reason(error)) for _ in part]
            else:
                verdicts += [_verdicts(answer, self._types) for answer in answers]
        return verdicts


def _verdicts(answer: dict[str, Any] | None, types: Sequence[str]) -> TypeVerdicts:
    if answer is None:
        reason = "the reward models could not score the response; see the log of the gateway"
        return TypeVerdicts(failure=reason, refused=True)
    segments = answer["segments"]
    if segments and (missing := [kind for kind in types if kind not in segments[0]["rewards"]]):
        return TypeVerdicts(failure=f"the reward service does not score the fact type {missing[0]}", refused=True)
    return TypeVerdicts(
        spans=tuple((segment["start"], segment["end"]) for segment in segments),
        token_ends=tuple(segment["token_end"] for segment in segments),
        response=answer["response"],
        probabilities=tuple(tuple(tuple(segment[kind]) for kind in types) for segment in segments),
    )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
