"""Harmless lines stay off standard error, everything else arrives, also from a process that dies."""

import os
import subprocess
import sys

import pytest

from actors.cluster.quiet import without_lines

DIES = """
import os
from actors.cluster.quiet import without_lines
with without_lines(["harmless"]):
    os.write(2, b"a harmless line\\nlast words\\n")
    os.abort()
"""


def test_only_harmless_lines_are_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    with without_lines(["harmless", "(odd*"]):
        os.write(2, b"one\na harmless line\ntwo\n(odd* three\nfour\n")
    os.write(2, b"harmless afterwards\n")
    assert capfd.readouterr().err == "one\ntwo\nfour\nharmless afterwards\n"


def test_the_last_words_of_a_process_that_dies_arrive() -> None:
    process = subprocess.run([sys.executable, "-c", DIES], check=False, capture_output=True, text=True)
    assert process.returncode < 0
    assert process.stderr.startswith("last words\n")
