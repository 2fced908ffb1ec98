"""The interface between an extractor and its endpoint: known answers, permits, and the account of calls."""

from dataclasses import dataclass
from typing import Protocol

from fgaif_ray.calls.answers import CallAnswer
from fgaif_ray.calls.tokens import CallSize


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is sent."""

    size: CallSize
    number: int
    """Its number in the worker's ledger."""
    permit: int | None
    """Its permit at the cluster's call coordinator; None without limits."""


class Calls(Protocol):
    """The extractor's view of calls.

    A call goes ``find``, ``acquire``, ``send``, then ``keep`` and ``answered``, or ``failed``. After None from
    ``find`` the caller has to ``keep`` or ``abandon`` the key. Every ``send`` has to be followed by ``answered`` or
    ``failed``.
    """

    async def find(self, key: str) -> CallAnswer | None:
        """Return the answer to a call, or None for the one caller that has to make it; others wait for that one."""
        ...

    def keep(self, key: str, answer: CallAnswer) -> None:
        """Keep an answer as soon as it has arrived."""
        ...

    def abandon(self, key: str) -> None:
        """Leave a call without an answer to others."""
        ...

    async def acquire(self, size: CallSize) -> int | None:
        """Wait until a call may be made; returns its permit, or None without limits.

        A permit has to be followed soon by ``send`` or ``release``, since limits count it as sent.

        Raises:
            UserError: the budget is used up, or another worker has stopped.
        """
        ...

    def release(self, permit: int | None) -> None:
        """Return a permit unused."""
        ...

    async def send(self, size: CallSize, permit: int | None, *, retry: bool, repair: bool) -> Call:
        """Account for a call that is about to be sent, after a pause that is under way.

        Raises:
            UserError: another worker has stopped; the permit is released.
        """
        ...

    def answered(self, call: Call, tokens: tuple[int, int] | None, unusable: str | None) -> None:
        """Account for an answer; ``tokens`` is None where the endpoint does not count."""
        ...

    def failed(self, call: Call, reason: str, *, may_be_billed: bool) -> None:
        """Account for a call without an answer."""
        ...

    def pause(self, seconds: float) -> None:
        """Pause all calls for some seconds, as the endpoint has asked."""
        ...

    def stop(self, reason: str) -> None:
        """Stop all calls: the endpoint cannot be used."""
        ...


class FreeCalls:
    """Calls without limits, account or cache."""

    async def find(self, key: str) -> CallAnswer | None:  # noqa: ARG002
        return None

    def keep(self, key: str, answer: CallAnswer) -> None:
        pass

    def abandon(self, key: str) -> None:
        pass

    async def acquire(self, size: CallSize) -> int | None:  # noqa: ARG002
        return None

    def release(self, permit: int | None) -> None:
        pass

    async def send(self, size: CallSize, permit: int | None, *, retry: bool, repair: bool) -> Call:  # noqa: ARG002
        return Call(size, 0, permit)

    def answered(self, call: Call, tokens: tuple[int, int] | None, unusable: str | None) -> None:
        pass

    def failed(self, call: Call, reason: str, *, may_be_billed: bool) -> None:
        pass

    def pause(self, seconds: float) -> None:
        pass

    def stop(self, reason: str) -> None:
        pass


class UnansweredError(Exception):
    """A call that would have to be made."""


class KnownCalls(FreeCalls):
    """Known answers without calls, to find out whether a response needs the endpoint at all."""

    def __init__(self, find: "FindAnswer") -> None:
        self._find = find

    async def find(self, key: str) -> CallAnswer | None:
        answer = self._find(key)
        if answer is None:
            raise UnansweredError(key)
        return answer


class FindAnswer(Protocol):
    """Return the answer to a call by its key, or None."""

    def __call__(self, key: str, /) -> CallAnswer | None: ...
