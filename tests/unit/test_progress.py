"""What a person is told while a job works."""

import uuid

import pytest

from fgaif_ray.progress import say_once, say_rejected


def rejected(count: int) -> list[tuple[str, str]]:
    return [(f"{number}.png", f"reason {number}") for number in range(count)]


def test_rejected_rows_are_listed_with_their_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    say_rejected("sample", rejected(2), 2, "run/rejected")
    assert capsys.readouterr().out.splitlines() == ["sample: rejected:", "  0.png: reason 0", "  1.png: reason 1"]


def test_of_many_rejected_rows_the_first_ten_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    say_rejected("sample", rejected(12), 12, "run/rejected")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["  9.png: reason 9", "  and 2 more; all are in run/rejected."]


def test_nothing_is_said_where_nothing_is_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    say_rejected("sample", [], 0, "run/rejected")
    assert capsys.readouterr().out == ""


def test_stages_that_look_at_the_same_data_say_a_thing_once(capsys: pytest.CaptureFixture[str]) -> None:
    message = uuid.uuid4().hex
    say_once(message)
    say_once(message)
    assert capsys.readouterr().out == f"{message}\n"
