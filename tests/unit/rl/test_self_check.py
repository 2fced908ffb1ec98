"""What a comparison of engine and learner is taken for."""

import pytest

from fgaif_ray.rl.self_check import EngineAgreement
from fgaif_ray.vlm.probes import SelfCheckError

TOLERANCE = 0.05


def problem(difference: float, effect: float, without_adapter: float, *, adapted: bool = True) -> str | None:
    agreement = EngineAgreement(difference, largest=difference, effect=effect, without_adapter=without_adapter)
    try:
        agreement.check(TOLERANCE, adapted)
    except SelfCheckError as error:
        return str(error)
    return None


@pytest.mark.parametrize("adapted", [False, True])
def test_small_differences_pass(adapted: bool) -> None:
    assert problem(0.01, effect=1.0, without_adapter=1.0, adapted=adapted) is None


@pytest.mark.parametrize("adapted", [False, True])
def test_large_differences_are_told(adapted: bool) -> None:
    said = problem(0.06, effect=1.0, without_adapter=1.0, adapted=adapted)
    assert said is not None and said.startswith("log-probabilities of engine and learner differ by 0.06 nats")


def test_an_engine_that_answers_as_without_the_adapter_ignores_it() -> None:
    said = problem(1.0, effect=1.0, without_adapter=0.02)
    assert said is not None and said.startswith("the engine ignores the adapter")


def test_an_engine_that_differs_from_both_does_not_ignore_the_adapter() -> None:
    said = problem(1.2, effect=0.6, without_adapter=1.0)
    assert said is not None and said.startswith("log-probabilities of engine and learner differ by 1.2 nats")


def test_an_adapter_that_cannot_be_told_from_rounding_is_not_trusted() -> None:
    said = problem(0.04, effect=0.05, without_adapter=0.06)
    assert said is not None and said.startswith("the adapter moves log-probabilities by 0.05 nats alone")
