"""The benchmark of labelling prints one line of figures; what was not measured is null."""

import json

import pytest

from benchmarks.labelling import KEYS, main


def test_its_last_line_has_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--only", "segments", "--quick"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert tuple(figures) == KEYS
    assert {name for name, value in figures.items() if value is not None} == {"segments_per_second"}
