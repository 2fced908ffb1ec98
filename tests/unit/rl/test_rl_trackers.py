"""Experiment trackers. Stand-ins take the place of services and packages that are not here."""

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fgaif_ray.config import MLflowConfig, TrackingConfig, WandbConfig
from fgaif_ray.errors import UserError
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rl.run_log import RunLog, read_lines
from fgaif_ray.rl.trackers import open_trackers, require_packages

SETTINGS = {"steps": 3, "ppo": {"clip": 0.2}}


class WandbStandIn:
    """Notes what a Weights & Biases client would be told."""

    def __init__(self, failure: str | None = None) -> None:
        self.failure, self.starts, self.rows, self.finished = failure, [], [], 0
        self.axes: list[tuple[str, Any]] = []

    def init(self, **arguments: Any) -> "WandbStandIn":
        if self.failure:
            raise RuntimeError(self.failure)
        self.starts.append(arguments)
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes.append((name, step_metric))

    def log(self, row: dict[str, float]) -> None:
        if self.finished:
            raise RuntimeError("the run has finished")
        self.rows.append(row)

    def finish(self) -> None:
        self.finished += 1


class MLflowStandIn:
    """Notes what an MLflow client would be told; it is the package and its client."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, str]] = {}
        self.figures: list[tuple[str, str, float, int]] = []
        self.parameters: dict[str, str] = {}
        self.ended: list[str] = []
        self.entities = SimpleNamespace(Metric=lambda name, value, time, step: (name, value, step))

    def MlflowClient(self, tracking_uri: str | None) -> "MLflowStandIn":  # noqa: N802 -- their name
        return self

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        return SimpleNamespace(experiment_id=name) if self.runs else None

    def create_experiment(self, name: str) -> str:
        return name

    def search_runs(self, places: list[str], filter_string: str, max_results: int) -> list[SimpleNamespace]:
        found = [run for run, tags in self.runs.items() if filter_string == f"tags.`fgaif.run` = '{tags['fgaif.run']}'"]
        return [SimpleNamespace(info=SimpleNamespace(run_id=run)) for run in found]

    def create_run(self, place: str, tags: dict[str, str], run_name: str) -> SimpleNamespace:
        self.runs[f"{place}/{run_name}"] = tags
        return SimpleNamespace(info=SimpleNamespace(run_id=f"{place}/{run_name}"))

    def update_run(self, run: str, status: str) -> None:
        self.ended.remove(run)

    def log_param(self, run: str, name: str, value: str) -> None:
        self.parameters[name] = value

    def log_batch(self, run: str, metrics: list[tuple[str, float, int]]) -> None:
        self.figures += [(run, *metric) for metric in metrics]

    def set_terminated(self, run: str) -> None:
        self.ended.append(run)


def install(monkeypatch: pytest.MonkeyPatch, name: str, package: object | None) -> None:
    monkeypatch.setitem(sys.modules, name, package)  # type: ignore[arg-type]


def stage_folder(tmp_path: Path) -> str:
    folder = tmp_path / "demo" / "policy.partial"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def test_nothing_is_imported_unless_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("wandb", "mlflow"):
        install(monkeypatch, name, None)  # importing them is an ImportError now
    require_packages(TrackingConfig())
    assert open_trackers(TrackingConfig(), str(tmp_path), SETTINGS) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_in_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    install(monkeypatch, name, None)
    config = TrackingConfig.model_validate({name: {}})
    with pytest.raises(UserError, match=rf"^align.tracking.{name} needs the package {name}: install it .*\.$"):
        require_packages(config)


def test_wandb_gets_finite_metrics_and_a_resumed_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = TrackingConfig(wandb=WandbConfig(project="p", mode="offline"))
    starts = []
    for first in (1, 2):
        package = WandbStandIn()
        install(monkeypatch, "wandb", package)
        log = RunLog(stage_folder(tmp_path), first, FACT_TYPES, open_trackers(config, stage_folder(tmp_path), SETTINGS))
        log.write_metrics(first, {"reward/total": 0.5, "lost": math.nan})
        log.close()
        starts += package.starts
        assert package.rows == [{"reward/total": 0.5, "ppo_step": first}]
        assert package.finished == 1 and ("*", "ppo_step") in package.axes
    assert starts[0]["id"] == starts[1]["id"] and starts[0]["resume"] == "allow"
    assert starts[0]["name"] == "demo" and starts[0]["mode"] == "offline" and starts[0]["config"] == SETTINGS


def test_mlflow_gets_metrics_by_step_and_a_resumed_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = MLflowStandIn()
    install(monkeypatch, "mlflow", package)
    config = TrackingConfig(mlflow=MLflowConfig(experiment="e", name="n"))
    for step in (1, 2):
        [tracker] = open_trackers(config, stage_folder(tmp_path), SETTINGS)
        tracker.log(step, {"reward/total": 0.5})
        tracker.close()
    assert package.figures == [("e/n", "reward/total", 0.5, 1), ("e/n", "reward/total", 0.5, 2)]
    assert package.parameters == {"steps": "3", "ppo.clip": "0.2"}
    assert package.ended == ["e/n"]


def test_a_tracker_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, "wandb", WandbStandIn(failure="no API key.\nTraceback"))
    with pytest.raises(
        UserError, match=r"align\.tracking\.wandb cannot be started \(no API key\): check WANDB_API_KEY"
    ):
        open_trackers(TrackingConfig(wandb=WandbConfig()), stage_folder(tmp_path), SETTINGS)


def test_a_tracker_that_fails_later_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    package = WandbStandIn()
    install(monkeypatch, "wandb", package)
    folder = stage_folder(tmp_path)
    log = RunLog(folder, 1, FACT_TYPES, open_trackers(TrackingConfig(wandb=WandbConfig()), folder, SETTINGS))
    package.finish()
    for step in (1, 2):
        log.write_metrics(step, {"reward/total": 1.0})
    log.close()
    assert [row["step"] for row in read_lines(f"{folder}/metrics.jsonl")] == [1, 2]
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "metrics.jsonl has" in caplog.text
