"""What labels say of objects that the same labels call absent."""

from pathlib import Path

import pytest
from support.labelled import feedback, segment_by_ai

from benchmarks.absent_objects import count_facts, main
from fgaif_ray.errors import UserError
from fgaif_ray.records import ABSENT, Feedback, JudgedFact


def fact(kind: str, text: str, consistent: bool) -> JudgedFact:
    return JudgedFact(type=kind, text=text, p_consistent=0.5, consistent=consistent)


def row(*segments: list[JudgedFact]) -> Feedback:
    absent = (ABSENT, ABSENT, ABSENT)
    return feedback("a", *(segment_by_ai("A ring. ", absent, facts=tuple(facts)) for facts in segments))


def test_facts_that_name_an_absent_object_are_counted_apart() -> None:
    response = row(
        [fact("existence", "There is a ring.", False), fact("attribute", "The ring is red.", False)],
        [fact("existence", "There is a star.", True), fact("attribute", "The star is blue.", False)],
        [fact("relation", "The star is above the ring.", True)],
    )
    assert count_facts([response]) == {
        ("attribute", True, False): 1,
        ("attribute", False, False): 1,
        ("relation", True, True): 1,
    }


def test_an_object_that_one_statement_finds_is_not_absent() -> None:
    twice = [fact("existence", "There is a ring.", False), fact("existence", "There is a ring.", True)]
    assert count_facts([row([*twice, fact("attribute", "The ring is red.", True)])]) == {("attribute", False, True): 1}


def test_another_response_says_nothing_of_this_one() -> None:
    absent, other = [fact("existence", "There is a ring.", False)], [fact("attribute", "The ring is red.", True)]
    assert count_facts([row(absent), row(other)]) == {("attribute", False, True): 1}


def test_a_folder_without_feedback_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} holds no feedback"):
        main([str(tmp_path)])
