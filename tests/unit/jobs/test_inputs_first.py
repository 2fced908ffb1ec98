"""Jobs look at what they need before they do anything: a run that must fail draws, starts and writes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fgaif_ray import storage
from fgaif_ray.config import Config, load_config
from fgaif_ray.errors import UserError
from fgaif_ray.sources import prepare_images
from fgaif_ray.storage import stages
from jobs import align, calibrate, evaluate, label, pipeline, reward_accuracy, sample, train_rewards

COUNTS = ("data.sample_images=4", "data.align_images=4", "data.evaluate_images=2")


def configure(folder: Path, *changes: str) -> Config:
    return load_config("configs/shapes.yaml", [f"run.dir={folder / 'run'}", *COUNTS, *changes])


@pytest.mark.parametrize(
    ("run", "changes", "said"),
    [
        (align.run, (), "holds no reward model: run .*train_rewards"),
        (label.run, (), "responses is not there: run .*sample"),
        (train_rewards.run, (), "feedback is not there: run .*label"),
        (evaluate.run, (), "policy is not there: run .*align"),
        (reward_accuracy.run, (), "is not there: run .*"),
        (lambda config: calibrate.calibrate_on(config, "nowhere.jsonl"), (), r"nowhere\.jsonl"),
        (sample.run, ("policy.model=nobody/nothing",), "nobody/nothing is not a folder here and not downloaded"),
        (pipeline.run, ("rewards.backbone=nobody/nothing",), "nobody/nothing is not a folder here"),
        (pipeline.run, ("label.extractor.serve_model=nobody/nothing",), "nobody/nothing is not a folder here"),
    ],
)
def test_what_is_missing_is_told_before_scenes_are_drawn(
    tmp_path: Path, run: Callable[[Config], None], changes: tuple[str, ...], said: str
) -> None:
    config = configure(tmp_path, *changes)
    with pytest.raises(UserError, match=said):
        run(config)
    assert not storage.exists(storage.join(config.run.dir, "images"))


@pytest.mark.parametrize("run", [sample.run, align.run, label.run, train_rewards.run, evaluate.run, pipeline.run])
def test_a_run_folder_that_is_a_file_is_told_first(tmp_path: Path, run: Callable[[Config], None]) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match=r"run\.dir=.* is a file"):
        run(configure(tmp_path))


def test_images_that_responses_name_are_not_replaced_unasked(tmp_path: Path) -> None:
    config = configure(tmp_path)
    drawn = prepare_images(config).sample
    stage = storage.Stage(config.run.dir, "responses", "f")
    stage.begin()
    stage.publish({"rows": 4})
    before = storage.read_bytes(*drawn[0])
    with pytest.raises(UserError, match=r"images is finished .*--overwrite"):
        prepare_images(configure(tmp_path, "run.seed=1"))
    assert storage.read_bytes(*drawn[0]) == before
    prepare_images(configure(tmp_path, "run.seed=1", "run.overwrite=true"))
    assert storage.read_bytes(*drawn[0]) != before


def test_the_wish_to_overwrite_changes_no_stage(tmp_path: Path) -> None:
    plain, overwriting = (configure(tmp_path, f"run.overwrite={wish}") for wish in ("false", "true"))
    sets = prepare_images(plain)
    assert stages.responses(plain, sets) == stages.responses(overwriting, sets)
