"""Experiment trackers to which a PPO run reports its metrics: Weights & Biases and MLflow.

Their packages are imported only if the configuration names them. An error before the first step stops the run with one
sentence. When a tracker fails later, this is logged once and training goes on: ``metrics.jsonl`` has everything.
"""

import importlib
import logging
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Final, Protocol

from fgaif_ray import storage
from fgaif_ray.config import MLflowConfig, TrackingConfig, WandbConfig
from fgaif_ray.errors import UserError

logger = logging.getLogger(__name__)

IDENTITY_FILE: Final = "tracking.json"
RUN_TAG: Final = "fgaif.run"
STEP: Final = "ppo_step"
LONGEST_PARAMETER: Final = 500


class Tracker(Protocol):
    """A tracker of the metrics of each step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report the finite metrics of one step; a resumed run repeats some steps."""

    def close(self) -> None:
        """End the report."""


def require_packages(config: TrackingConfig) -> None:
    """Import the configured packages, so that a missing one shows before anything else starts.

    Raises:
        UserError: a package is not installed.
    """
    for name in ("wandb", "mlflow"):
        if getattr(config, name) is not None:
            _package(name)


def open_trackers(config: TrackingConfig, folder: str, settings: Mapping[str, Any]) -> list[Tracker]:
    """Open the trackers that the configuration names.

    Args:
        config: which, and where.
        folder: the stage's folder: a run that goes on in it goes on in its trackers too, by the identity kept in
            ``tracking.json``.
        settings: shown beside the run.

    Raises:
        UserError: a package is not installed, or a tracker cannot be reached.
    """
    trackers: list[Tracker] = []
    if config.wandb is not None:
        trackers.append(_Careful("W&B", _opened(WandbTracker, "wandb", config.wandb, folder, settings)))
    if config.mlflow is not None:
        trackers.append(_Careful("MLflow", _opened(MLflowTracker, "mlflow", config.mlflow, folder, settings)))
    return trackers


class WandbTracker:
    """A Weights & Biases run; its charts have the PPO step as their axis, so that a resumed run may repeat steps."""

    def __init__(self, config: WandbConfig, folder: str, settings: Mapping[str, Any]) -> None:
        """Starts or resumes the run; with ``mode: offline`` its files are in the folder."""
        local = folder.removeprefix("file://") if storage.is_local(folder) else tempfile.mkdtemp(prefix="fgaif-wandb-")
        self._run: Any = _package("wandb").init(
            project=config.project,
            name=config.name or _name(folder),
            id=_identity(folder),
            resume="allow",
            mode=config.mode,
            dir=local,
            config=dict(settings),
        )
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row of the run's history."""
        self._run.log({**metrics, STEP: step})

    def close(self) -> None:
        """Marks the run as finished."""
        self._run.finish()


class MLflowTracker:
    """A run of an MLflow experiment, found again by a tag."""

    def __init__(self, config: MLflowConfig, folder: str, settings: Mapping[str, Any]) -> None:
        """Create the run, or resume it."""
        self._package = _package("mlflow")
        self._client: Any = self._package.MlflowClient(tracking_uri=config.tracking_uri)
        experiment = self._client.get_experiment_by_name(config.experiment)
        place = self._client.create_experiment(config.experiment) if experiment is None else experiment.experiment_id
        identity = _identity(folder)
        found = self._client.search_runs([place], filter_string=f"tags.`{RUN_TAG}` = '{identity}'", max_results=1)
        if found:
            self._run_id = found[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            return
        run = self._client.create_run(place, tags={RUN_TAG: identity}, run_name=config.name or _name(folder))
        self._run_id = run.info.run_id
        for name, value in _flat(settings):
            self._client.log_param(self._run_id, name, value[:LONGEST_PARAMETER])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One batch of metrics."""
        now, metric = int(time.time() * 1000), self._package.entities.Metric
        self._client.log_batch(
            self._run_id, metrics=[metric(name, value, now, step) for name, value in metrics.items()]
        )

    def close(self) -> None:
        """Marks the run as finished."""
        self._client.set_terminated(self._run_id)


class _Careful:
    """A tracker whose failures do not end the training."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker, self._failure_is_logged = name, tracker, False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._try(lambda: self._tracker.log(step, metrics))

    def close(self) -> None:
        self._try(self._tracker.close)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a third party's client may raise anything
            if not self._failure_is_logged:
                logger.warning("%s does not take this run's metrics, which metrics.jsonl has: %s", self._name, error)
            self._failure_is_logged = True


def _opened(
    kind: Callable[[Any, str, Mapping[str, Any]], Tracker],
    name: str,
    config: WandbConfig | MLflowConfig,
    folder: str,
    settings: Mapping[str, Any],
) -> Tracker:
    try:
        return kind(config, folder, settings)
    except UserError:
        raise
    except Exception as error:  # a key, a server, a project: their clients have many errors
        advice = "WANDB_API_KEY, or mode: offline" if name == "wandb" else "tracking_uri and its credentials"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"align.tracking.{name} cannot be started ({reason}): check {advice}.") from error


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"align.tracking.{name} needs the package {name}: install it (pip install {name}) or take "
            f"align.tracking.{name} out of the configuration."
        ) from error


def _identity(folder: str) -> str:
    """Return a unique name of the run, kept in its folder."""
    uri = storage.join(folder, IDENTITY_FILE)
    if not storage.exists(uri):
        storage.write_json(uri, {"id": uuid.uuid4().hex})
    identity: str = storage.read_json(uri)["id"]
    return identity


def _name(folder: str) -> str:
    return os.path.basename(storage.parent(folder.rstrip("/"))) or "run"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested settings to dotted names and texts."""
    pairs: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", str(value)))
    return pairs
