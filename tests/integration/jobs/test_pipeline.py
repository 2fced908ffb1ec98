"""The whole loop on a few scenes as a person runs it: interrupted, called again, and called once more when all is done.

Real engines, Ray Data, Ray Train, Ray Serve and HTTP; the models are the shipped ones, the figures mean nothing yet.
The truth of the images is known for three of its four fact types.
"""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.notebooks import run_notebook
from support.small_run import EVALUATED, SAMPLED, SMALL

from fgaif_ray import storage
from fgaif_ray.records import FACT_TYPES, NOVELTY_TYPE
from fgaif_ray.storage import stages

pytestmark = [pytest.mark.ray, pytest.mark.vllm]
TYPES = (*FACT_TYPES, NOVELTY_TYPE)
STAGES = ("images", "sample", "label", "train_rewards", "serve_rewards", "align", "evaluate", "report")


@dataclass(frozen=True)
class Call:
    """How one call of the pipeline ended."""

    code: int
    output: str


@dataclass(frozen=True)
class Loop:
    """A run's folder and the calls that made it."""

    folder: Path
    interrupted: Call
    finished: Call
    repeated: Call
    summary_before_repeat: dict[str, Any]
    summary: dict[str, Any]


def call_pipeline(repository: Path, folder: Path, interrupt_at: str | None = None) -> Call:
    """Run the job in a process of its own; Ctrl-C as soon as a line starts with ``interrupt_at``."""
    changes = [f"run.dir={folder}", f"run.fact_types=[{', '.join(TYPES)}]", *SMALL]
    command = [sys.executable, "-m", "jobs.pipeline", "--config", "configs/shapes.yaml"]
    for change in changes:
        command += ["--set", change]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # Where whoever runs the tests ignores Ctrl-C (nohup), the child would inherit that; a handler is not inherited.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        command,
        cwd=repository,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        signal.signal(signal.SIGINT, previous)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if interrupt_at is not None and line.startswith(interrupt_at):
                process.send_signal(signal.SIGINT)
                interrupt_at = None
    return Call(process.returncode, "".join(lines))


@pytest.fixture(scope="module")
def loop(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Loop:
    folder = tmp_path_factory.mktemp("loop") / "run"
    interrupted = call_pipeline(repository, folder, interrupt_at="== train_rewards")
    finished = call_pipeline(repository, folder)
    assert finished.code == 0, finished.output
    before = json.loads((folder / "summary.json").read_text())
    repeated = call_pipeline(repository, folder)
    return Loop(folder, interrupted, finished, repeated, before, json.loads((folder / "summary.json").read_text()))


def test_an_interrupted_call_says_how_to_go_on(loop: Loop) -> None:
    output = loop.interrupted.output
    assert (loop.interrupted.code, "run the same command again to go on" in output) == (130, True), output


def test_the_next_call_does_not_repeat_what_was_done(loop: Loop) -> None:
    done_before = [name for name in STAGES if f"== {name}: done before" in loop.finished.output]
    assert done_before == ["images", "sample", "label"]


def test_the_summary_holds_the_figures_of_every_stage(loop: Loop) -> None:
    figures = loop.summary
    assert set(figures["labels"]["balanced_accuracy"]) == set(FACT_TYPES)
    assert set(figures["rewards"]) == set(TYPES)
    assert all("balanced_accuracy" in figures["rewards"][kind] for kind in TYPES)
    for which in ("before", "after"):
        measured = figures["alignment"][which]
        assert set(measured["hallucination_rate"]) == {*FACT_TYPES, "overall"}
        assert {"coverage", "facts_per_response"} <= set(measured)
        assert measured["greedy"]["responses"] == measured["responses"] == EVALUATED
        assert {"accuracy", "precision", "recall", "f1", "yes_ratio"} <= set(measured["pope"])
        assert 0 <= measured["pope"]["yes_ratio"] <= 1
        assert set(measured["pope"]["splits"]) == {"random", "popular", "adversarial"}
    assert set(figures["timing"]) == set(STAGES)
    assert {"ray", "torch", "transformers"} <= set(figures["versions"])


def test_the_calls_that_worked_are_counted(loop: Loop) -> None:
    assert loop.summary["calls"]["calls"] == 2


def test_it_ends_with_the_table_and_the_page(loop: Loop) -> None:
    end = loop.finished.output[-2000:]
    assert "hallucination, overall" in end
    assert end.rstrip().endswith(str(loop.folder / "report.html"))
    assert (loop.folder / "report.html").stat().st_size > 10_000


def test_merged_weights_answer_something_else_about_every_held_out_image(loop: Loop) -> None:
    rows = list(storage.read_rows(str(loop.folder / stages.EVALUATION)))
    described = Counter((row["which"], row["task"]) for row in rows if row["task"] != "pope")
    assert described == {(which, task): EVALUATED for which in ("before", "after") for task in ("sampled", "greedy")}
    said = {
        which: sorted(
            (row["image"], row["task"], row["prompt"], row["response"]) for row in rows if row["which"] == which
        )
        for which in ("before", "after")
    }
    assert said["before"] != said["after"]


def test_the_adapter_of_the_aligned_policy_is_there(loop: Loop) -> None:
    assert (loop.folder / "policy" / "adapter_model.safetensors").exists()


def test_a_call_when_all_is_done_asks_nothing_and_changes_no_figure(loop: Loop) -> None:
    assert loop.repeated.code == 0
    assert f"evaluate: {loop.folder / stages.EVALUATION} is up to date." in loop.repeated.output
    assert loop.summary == loop.summary_before_repeat


def test_the_notebook_about_feedback_and_report_reads_the_run(loop: Loop) -> None:
    shown = run_notebook("feedback_and_report", FGAIF_RUN=str(loop.folder))
    assert f"{SAMPLED} responses" in shown
    assert all(f"{kind:10} balanced accuracy" in shown for kind in TYPES)
    assert "before coverage" in shown and "after  coverage" in shown


def test_the_notebook_about_training_serves_the_rewards_and_learns_from_them(loop: Loop) -> None:
    shown = run_notebook("train_with_rewards", FGAIF_RUN=str(loop.folder), STEPS="1")
    assert shown.count("\nreward ") == 2  # of a true answer and of one with mistakes
    assert "steps made: 1" in shown and "step 1: reward" in shown
    assert "service ended with 0" in shown


def test_no_process_outlives_a_call(loop: Loop) -> None:
    import psutil

    left = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            if str(loop.folder) in " ".join(process.info["cmdline"] or []):
                left.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    assert left == []
