"""The command line: one help, one set of options, and one sentence and a status for each kind of end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fgaif_ray import __version__
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError, find_user_error
from jobs.cli import SECTIONS, SUMMARIES, main, run_job
from jobs.old_flags import replace_old_flag

ARGUMENTS = ["--config", "configs/shapes.yaml"]
WITHOUT_CONFIGURATION = {"audit", "check-model", "export", "demo", "pretrain-shapes"}
"""Commands whose own help has no ``--config``."""


def ends_with(error: BaseException) -> int:
    def work() -> None:
        raise error

    return run_job("example", work)


class TestEnds:
    def test_a_job_that_is_done_exits_with_zero(self) -> None:
        assert run_job("example", lambda: None) == 0

    def test_a_user_error_is_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert ends_with(UserError("Set data.path.")) == 2
        assert capsys.readouterr().err == "example: Set data.path.\n"

    def test_a_user_error_from_a_worker_is_found(self) -> None:
        outer = RuntimeError("task failed")
        outer.cause = UserError("Set data.path.")  # type: ignore[attr-defined]  as Ray's errors carry it
        assert str(find_user_error(outer)) == "Set data.path."

    def test_a_defect_shows_its_traceback(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert ends_with(ZeroDivisionError("oops")) == 1
        assert "Traceback" in capsys.readouterr().err

    def test_an_interruption_says_how_to_go_on(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert ends_with(KeyboardInterrupt()) == 130
        assert "again to go on" in capsys.readouterr().err

    def test_a_termination_signal_is_an_interruption(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        try:
            assert run_job("example", lambda: os.kill(os.getpid(), signal.SIGTERM)) == 130
        finally:
            signal.signal(signal.SIGTERM, before)

    def test_an_interruption_while_a_class_is_defined_keeps_its_status(self, tmp_path: Path, repository: Path) -> None:
        # Where Python runs code from text, as dataclass() does, a plain KeyboardInterrupt decides on the status itself.
        (tmp_path / "example_job.py").write_text(
            "import sys\nfrom jobs.cli import run_job\n"
            "def work():\n    exec('import signal; signal.raise_signal(signal.SIGINT)')\n"
            "sys.exit(run_job('example', work))\n"
        )
        code = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        (tmp_path / "with_ctrl_c.py").write_text(code + "runpy.run_module('example_job', run_name='__main__')\n")
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{repository}"}
        done = subprocess.run(
            [sys.executable, "-m", "with_ctrl_c"], cwd=repository, env=environment, capture_output=True, check=False
        )
        assert done.returncode == 130

    def test_a_stage_before_the_one_it_needs_names_the_job(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "jobs.report", *ARGUMENTS, "--set", f"run.dir={tmp_path}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "jobs." in done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """The help of every command, from one process that does nothing else, and the heavy modules that it loaded."""
    code = (
        "import contextlib, io, json, sys\n"
        "from jobs.cli import SUMMARIES, main\n"
        "found = {}\n"
        "for name in SUMMARIES:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as text:\n"
        "        assert main(name, ['--help']) == 0\n"
        "    found[name] = text.getvalue()\n"
        "found['heavy modules'] = ' '.join({'torch', 'ray', 'vllm'} & set(sys.modules))\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


class TestHelp:
    def test_it_shows_every_command_on_one_screen(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(None, ["--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        shown = {line.split()[0] for line in lines if line.startswith("  ") and line.split()}
        assert set(SUMMARIES) - set(SECTIONS[""]) <= shown
        assert len(lines) <= 40
        assert max(map(len, lines)) <= 80

    def test_it_leaves_out_commands_that_only_programs_call(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(None, ["--help"])
        assert not any(name in capsys.readouterr().out for name in SECTIONS[""])

    @pytest.mark.parametrize("name", SUMMARIES)
    def test_of_a_command_has_an_example(self, name: str, helps: dict[str, str]) -> None:
        assert f"      fgaif {name}" in helps[name]
        assert ("--config FILE" in helps[name]) == (name not in WITHOUT_CONFIGURATION)

    def test_none_loads_torch_ray_or_vllm(self, helps: dict[str, str]) -> None:
        assert helps["heavy modules"] == ""

    def test_a_module_of_jobs_says_the_same(self, capsys: pytest.CaptureFixture[str]) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "jobs.train_rewards", "--help"], capture_output=True, text=True, check=True
        )
        main(None, ["train-rewards", "--help"])
        assert done.stdout == capsys.readouterr().out

    def test_a_shell_is_offered_commands_and_their_options(self) -> None:
        def offered(words: str) -> list[str]:
            environment = os.environ | {"_FGAIF_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": "1"}
            environment["COMP_CWORD"] = str(len(words.split(" ")) - 1)
            code = "from jobs.cli import main; main()"
            return subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
            ).stdout.split()

        assert offered("fgaif train") == ["train-rewards"]
        assert offered("fgaif label --dry") == ["--dry-run"]


class TestCommands:
    def test_the_version_is_shown(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(None, ["--version"]) == 0
        assert capsys.readouterr().out == f"fgaif {__version__}\n"

    def test_underscores_are_as_good_as_dashes(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(None, ["train_rewards", "--help"]) == 0
        assert "Usage: fgaif train-rewards" in capsys.readouterr().out

    def test_a_mistyped_command_is_answered_with_the_nearest(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(None, ["lable"]) == 2
        assert "Did you mean 'label'" in capsys.readouterr().err

    def test_a_missing_configuration_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main("sample", []) == 2
        assert "--config" in capsys.readouterr().err

    def test_an_override_reaches_the_configuration(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main("sample", [*ARGUMENTS, "--set", "sample.no_such_key=1"]) == 2
        assert "the key sample.no_such_key is not known" in capsys.readouterr().err

    @pytest.mark.parametrize("command", ["pipeline", "sample", "label", "train-rewards", "align", "evaluate"])
    def test_overwriting_is_a_key_of_the_configuration(
        self, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        given: list[Config] = []
        monkeypatch.setattr(f"jobs.{command.replace('-', '_')}.run", given.append)
        arguments = [*ARGUMENTS, "--set", f"run.dir={tmp_path}"]
        assert main(command, arguments) == main(command, [*arguments, "--overwrite"]) == 0
        assert [config.run.overwrite for config in given] == [False, True]


class TestOldFlags:
    @pytest.mark.parametrize(
        ("command", "arguments", "words"),
        [
            ("label", ["--audit", "20"], "audit draw 20"),
            ("label", ["--audit=20"], "audit draw 20"),
            ("label", ["--audit-import", "a", "b"], "audit import a b"),
            ("label", ["--calibrate", "facts"], "calibrate facts"),
            ("label", ["--plan", "--cluster", "f"], "plan label --cluster f"),
            ("pipeline", ["--plan", "--gpu-memory", "80"], "plan --gpu-memory 80"),
            ("align", ["--export-merged", "out"], "export merged out"),
            ("evaluate", ["--benchmarks", "pope", "--dry-run"], "benchmark pope --dry-run"),
            ("evaluate", ["--benchmarks", "pope", "--answers", "a", "b"], "benchmark pope --answers a --answers b"),
            ("evaluate", ["--serve-command"], "export serve-command"),
        ],
    )
    def test_an_old_flag_is_the_new_command(
        self, command: str, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # The order of options does not matter, so the common ones are compared apart.
        found = replace_old_flag(command, [*arguments, "--config", "x"])
        assert found[-2:] == ["--config", "x"]
        assert found[:-2] == words.split()
        assert "is now `fgaif" in capsys.readouterr().err

    def test_what_is_not_old_stays(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert replace_old_flag("label", ["--dry-run"]) == ["label", "--dry-run"]
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize(
        ("command", "flag"),
        [("label", "--audit-import"), ("align", "--export-merged"), ("evaluate", "--serve-command")],
    )
    def test_the_new_command_is_what_runs(
        self, command: str, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        values = [] if flag == "--serve-command" else [str(tmp_path / "file")]
        assert main(command, [*ARGUMENTS, "--set", f"run.dir={tmp_path}", flag, *values]) == 2
        assert "is not there" in capsys.readouterr().err
