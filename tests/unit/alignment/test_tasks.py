"""What Ray Train's controller imports to hand a task to the learner workers."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["transformers", "peft", "vllm"])
def test_the_controller_does_not_import_what_only_learners_need(package: str) -> None:
    code = f"import sys, actors.alignment.tasks; sys.exit({package!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
