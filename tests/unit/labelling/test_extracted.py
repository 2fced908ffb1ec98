"""What extraction workers send to verifiers arrives as it was."""

import dataclasses

import pytest
from support.labelled import response

from actors.labelling.checks import VerificationCheck
from actors.labelling.extracted import ExtractedResponse, seal_extracted, seal_fatal, unseal_extracted
from fgaif_ray.records import Fact
from fgaif_ray.segments import Span

WITH_FACTS = ExtractedResponse(
    response=response("a", "A dog. It is brown."),
    spans=(Span(0, 7), Span(7, 19)),
    facts=((Fact("existence", 'There is "a" dog.'),), ()),
)
REJECTED = dataclasses.replace(WITH_FACTS, facts=None, reason="refusal: no")
UNAVAILABLE = dataclasses.replace(WITH_FACTS, facts=None, unavailable="server: down")


@pytest.mark.parametrize("row", [WITH_FACTS, REJECTED, UNAVAILABLE])
def test_a_block_arrives_as_it_was_sealed(row: ExtractedResponse) -> None:
    assert unseal_extracted(seal_extracted([row, row])) == [row, row]


def test_a_reason_to_stop_arrives_in_place_of_a_block() -> None:
    assert unseal_extracted(seal_fatal("The budget is used up.")) == "The budget is used up."


def test_checks_of_several_blocks_add_up() -> None:
    first = VerificationCheck(second=True, questions=2, answer_mass=1.5, prompt_tokens=100, cached_tokens=60)
    second = VerificationCheck(second=True, questions=1, answer_mass=0.5, prompt_tokens=50, cached_tokens=0)
    assert first.merge(second) == VerificationCheck(
        second=True, questions=3, answer_mass=2.0, prompt_tokens=150, cached_tokens=60
    )


def test_a_check_survives_as_plain_values() -> None:
    check = VerificationCheck(second=True, questions=2, answer_mass=1.5, prompt_tokens=100, cached_tokens=60)
    assert VerificationCheck.from_row(check.to_row()) == check
