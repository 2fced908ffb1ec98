"""Requests to the reward service, from inside the cluster, for its verdicts on a batch."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from tenacity import RetryCallState, Retrying, retry_if_result, wait_exponential

from fgaif_ray.rewards.scoring import ResponseVerdicts

logger = logging.getLogger(__name__)

ATTEMPTS: Final = 4
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 10.0
PATIENCE_S: Final = 900.0
"""Seconds for which a silent service is asked, since a machine in place of a lost one takes minutes to come."""

TRANSIENT: Final = (RayServeException, RayError, TimeoutError)
"""Errors of a call while a replica or the gateway dies, is replaced, is slow, or fails; worth a retry."""


@dataclass(frozen=True, slots=True)
class TypeVerdicts:
    """The reward models' verdicts on one response, or why they are unavailable."""

    spans: tuple[tuple[int, int], ...] = ()
    """``[segments]`` start and end character of each segment."""
    token_ends: tuple[int, ...] = ()
    """``[segments]`` index of the sampled token that ends it."""
    response: str = ""
    """The text that the spans refer to."""
    probabilities: tuple[tuple[tuple[float, ...], ...], ...] | None = None
    """``[segments, types, classes]``; None where the reward is unavailable."""
    facts: tuple[tuple[tuple[float, ...], ...], ...] | None = None
    """``[segments, types, 2]`` expected facts, and false ones where one is; None where they are not counted."""
    failure: str | None = None
    refused: bool = False
    """Whether the service has read the response and cannot score it, so that a retry is useless."""


class Rewarder:
    """Requests for rewards, in parts and with retries after temporary failures.

    Example: ``Rewarder("rewards", 60.0, 64, types).score([{"image": data, "prompt": text, "response": None,
    "response_token_ids": [5, 9, 2]}])``
    """

    def __init__(self, app_name: str, timeout_s: float, part_size: int, types: Sequence[str]) -> None:
        """Prepare without looking anything up.

        Args:
            app_name: the Serve application.
            timeout_s: how long one part may take.
            part_size: items of one call.
            types: the fact types of the run, in the order that probabilities are to have.
        """
        self._app_name, self._timeout_s, self._part_size = app_name, timeout_s, part_size
        self._types = tuple(types)

    def score(self, items: Sequence[dict[str, Any]]) -> list[TypeVerdicts]:
        """Return verdicts in order, one per item (see `RewardGateway.score_responses` for what an item holds)."""
        verdicts = [TypeVerdicts(failure="not asked") for _ in items]
        missing = list(range(len(items)))

        def ask_for_missing() -> list[int]:
            for index, answer in zip(missing, self._ask([items[index] for index in missing]), strict=True):
                verdicts[index] = answer
            missing[:] = [index for index in missing if verdicts[index].failure and not verdicts[index].refused]
            return missing

        def gives_up(state: RetryCallState) -> bool:
            # What fails beside others that are answered may be what ends the replicas.
            down = len(missing) == len(items) and (state.seconds_since_start or 0.0) < PATIENCE_S
            return state.attempt_number >= ATTEMPTS and not down

        Retrying(
            retry=retry_if_result(bool),
            stop=gives_up,
            wait=wait_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S),
            retry_error_callback=lambda _: None,
        )(ask_for_missing)
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


def _verdicts(answer: ResponseVerdicts | None, types: Sequence[str]) -> TypeVerdicts:
    if answer is None:
        reason = "the reward models could not score the response; see the log of the gateway"
        return TypeVerdicts(failure=reason, refused=True)
    if missing := [kind for kind in types if kind not in answer.probabilities]:
        return TypeVerdicts(failure=f"the reward service does not score the fact type {missing[0]}", refused=True)
    counted = all(kind in answer.facts for kind in types)
    return TypeVerdicts(
        spans=tuple((span.start, span.end) for span in answer.response.spans),
        token_ends=tuple(answer.token_ends or ()),
        response=answer.response.text,
        probabilities=_by_segment([answer.probabilities[kind] for kind in types]),
        facts=_by_segment([answer.facts[kind] for kind in types]) if counted else None,
    )


def _by_segment(by_type: "Sequence[NDArray[Any]]") -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Turn ``[types][segments, numbers]`` into ``[segments, types, numbers]``."""
    rows = [one.tolist() for one in by_type]
    return tuple(tuple(map(tuple, segment)) for segment in zip(*rows, strict=True))


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
