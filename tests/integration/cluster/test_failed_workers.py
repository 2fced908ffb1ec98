"""Workers of Ray Train that fail and are started again: why they failed is told meanwhile."""

from pathlib import Path
from typing import Any

import pytest
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from actors.cluster.failed_workers import FailureNews, FailureNotes, noting_failures

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_why_workers_failed_is_told_though_the_next_try_succeeds(ray_cluster: dict[str, Any], tmp_path: Path) -> None:
    def fail_once(config: dict[str, Any]) -> None:
        tried = Path(config["tried"])
        if not tried.exists():
            tried.touch()
            raise ValueError("the learning rate\nis a fish")

    told: list[str] = []
    news = FailureNews(str(tmp_path), told.append)
    DataParallelTrainer(
        fail_once,
        train_loop_config={"tried": str(tmp_path / "tried")},
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.2}),
        run_config=RunConfig(
            name="run",
            storage_path=str(tmp_path),
            failure_config=FailureConfig(max_failures=1),
            callbacks=noting_failures(str(tmp_path)),
        ),
    ).fit()
    for _ in range(2):
        news.look("it starts again.")
    assert told == ["worker 0: ValueError: the learning rate is a fish; it starts again."]


def test_what_an_earlier_call_told_is_not_told_again(tmp_path: Path) -> None:
    FailureNotes(str(tmp_path)).after_exception(None, {0: ValueError("old")})
    told: list[str] = []
    news = FailureNews(str(tmp_path), told.append)
    FailureNotes(str(tmp_path)).after_exception(None, {1: RuntimeError("new")})
    news.look("again")
    assert told == ["worker 1: RuntimeError: new; again"]
