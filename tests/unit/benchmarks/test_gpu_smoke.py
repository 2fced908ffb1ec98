"""The short check of a GPU: what it calls, what it says of it, and when it stops."""

import json
import subprocess
from typing import Any

import pytest

from benchmarks import gpu_smoke
from benchmarks.gpu_smoke import LEFT_OUT, main

FIGURES = {"update_over_torch": 0.9}
Call = list[str]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What was started; every call succeeds but the check of LLaVA."""
    made: list[Call] = []

    def run(command: Call, **_options: Any) -> "subprocess.CompletedProcess[str]":
        made.append(command[2:])
        failed = command[2] == "jobs.check_model" and command[3] == "llava"
        return subprocess.CompletedProcess(command, int(failed), f"said\n{json.dumps(FIGURES)}\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(gpu_smoke, "build_family", lambda name, _folder: name)
    return made


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_families_are_checked_and_a_shape_is_measured(calls: list[Call], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--families", "qwen3_vl", "smolvlm", "--size", "tiny"]) == 0
    assert [call[:2] for call in calls] == [
        ["jobs.check_model", "qwen3_vl"],
        ["jobs.check_model", "smolvlm"],
        ["benchmarks.gpu", "--size"],
    ]
    found = last_line(capsys)
    assert found["families"] == {"qwen3_vl": "ok", "smolvlm": "ok"}
    assert found["tiny"] == FIGURES


def test_a_family_that_fails_is_named_and_decides_the_status(
    calls: list[Call], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--families", "llava", "qwen3_vl", "--size", "tiny"]) == 1
    assert last_line(capsys)["families"] == {"llava": "failed", "qwen3_vl": "ok"}
    assert len(calls) == 3


def test_what_the_time_does_not_allow_is_left_out(calls: list[Call], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--families", "qwen3_vl", "--size", "tiny", "--minutes", "0"]) == 0
    found = last_line(capsys)
    assert (found["families"], found["tiny"], calls) == ({"qwen3_vl": LEFT_OUT}, LEFT_OUT, [])


def test_bfloat16_may_differ_more_than_float32(calls: list[Call]) -> None:
    for dtype in ("bfloat16", "float32"):
        main(["--families", "qwen3_vl", "--size", "tiny", "--dtype", dtype])
    checks = [call for call in calls if call[0] == "jobs.check_model"]
    found = {call[call.index("--dtype") + 1]: float(call[call.index("--tolerance") + 1]) for call in checks}
    assert found["float32"] == 1e-3 < found["bfloat16"]
