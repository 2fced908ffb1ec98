"""How a job ends: one sentence and a status for each kind of end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fgaif_ray.config import Config
from fgaif_ray.errors import UserError, find_user_error
from jobs.cli import main

ARGUMENTS = ["--config", "configs/shapes.yaml"]
JOBS = ["sample", "label", "train_rewards", "serve_rewards", "align", "evaluate", "report", "pipeline", "experiment"]


def ends_with(error: BaseException) -> int:
    def run(_: Config) -> None:
        raise error

    return main("example", None, run, ARGUMENTS)


def test_a_job_that_is_done_exits_with_zero() -> None:
    assert main("example", None, lambda config: None, ARGUMENTS) == 0


def test_a_user_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with(UserError("Set data.path.")) == 2
    assert capsys.readouterr().err == "example: Set data.path.\n"


def test_a_user_error_from_a_worker_is_found() -> None:
    outer = RuntimeError("task failed")
    outer.cause = UserError("Set data.path.")  # type: ignore[attr-defined]  as Ray's errors carry it
    assert str(find_user_error(outer)) == "Set data.path."


def test_a_defect_shows_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with(ZeroDivisionError("oops")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with(KeyboardInterrupt()) == 130
    assert "again to go on" in capsys.readouterr().err


def test_a_termination_signal_is_an_interruption() -> None:
    def run(_: Config) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main("example", None, run, ARGUMENTS) == 130
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_interruption_while_a_class_is_defined_keeps_its_status(tmp_path: Path, repository: Path) -> None:
    # Where Python runs code from text, as dataclass() does, a plain KeyboardInterrupt decides on the status itself.
    (tmp_path / "example_job.py").write_text(
        "import sys\nfrom jobs.cli import main\n"
        "def run(config):\n    exec('import signal; signal.raise_signal(signal.SIGINT)')\n"
        f"sys.exit(main('example', None, run, {ARGUMENTS}))\n"
    )
    code = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    (tmp_path / "with_ctrl_c.py").write_text(code + "runpy.run_module('example_job', run_name='__main__')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{repository}"}
    done = subprocess.run(
        [sys.executable, "-m", "with_ctrl_c"], cwd=repository, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 130


@pytest.mark.parametrize("job", JOBS)
def test_help_answers_without_loading_torch(job: str) -> None:
    code = (
        f"import sys, runpy; sys.argv = ['{job}', '--help']\n"
        f"try: runpy.run_module('jobs.{job}', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'ray', 'vllm'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--config" in done.stdout


def test_a_stage_before_the_one_it_needs_names_the_job(tmp_path: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.report", *ARGUMENTS, "--set", f"run.dir={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "jobs." in done.stderr
    assert "Traceback" not in done.stderr
