"""The training job under Ray Train."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.reward_helpers import predict
from support.reward_training import (
    CHECKPOINT,
    feedback_rows,
    interrupted_training,
    job_config,
    publish_feedback,
    silent,
    train,
)

from fgaif_ray import storage
from fgaif_ray.errors import find_user_error
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.data import FeatureCache, domain_of, from_feedback, prepare_data
from fgaif_ray.rewards.kinds import reward_tasks
from fgaif_ray.rewards.model_files import load_reward_model
from fgaif_ray.storage import stages
from fgaif_ray.vlm.backbone import Backbone, load_backbone
from fgaif_ray.vlm.group import LearnerGroup
from jobs import train_rewards


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(CHECKPOINT, "float32")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_job_trains_what_is_missing_under_ray_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], backbone: Backbone
) -> None:
    config = job_config(tmp_path / "run", num_workers=2)
    publish_feedback(tmp_path / "run", feedback_rows(tmp_path / "images"))
    finished = {"fact_type": "relation", "balanced_accuracy": 0.5, "from": "an interrupted run"}
    stage = stages.rewards(config)
    stage.begin()
    storage.write_json(storage.join(stage.partial, "relation", "metrics.json"), finished)
    data = prepare_data(backbone, from_feedback(feedback_rows(tmp_path / "images"), FACT_TYPES), 0.25, 0, silent)
    interrupted_training(data, Path(stage.partial), reward_tasks("separate", FACT_TYPES)[1], after_epoch=1, seed=1)
    begun = json.loads(Path(stage.partial, "attribute.checkpoint.json").read_text())["curve"]

    train_rewards.run(config)

    published = tmp_path / "run" / "rewards"
    metrics = {name: json.loads((published / name / "metrics.json").read_text()) for name in FACT_TYPES}
    assert metrics["relation"] == finished
    assert metrics["attribute"]["curve"][0] == {
        "epoch": 1,
        "train_loss": begun[0]["train_loss"],
        **begun[0]["heads"]["attribute"],
    }
    for name in ("existence", "attribute"):
        assert metrics[name]["fact_type"] == name and len(metrics[name]["curve"]) == 3
        assert sorted(path.name for path in (published / name).iterdir()) == [
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            "domain.safetensors",
            "head.safetensors",
            "metrics.json",
        ]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["feedback", "rewards"]
    output = capsys.readouterr().out
    assert "reward model existence: held-out balanced accuracy" in output
    assert "reward model attribute: 36/36 responses" in output

    # Two workers took the steps that one process takes.
    alone, _ = train(data, epochs=3)
    together = load_reward_model(backbone, {"existence": str(published / "existence")})
    expected, found = (
        predict(model, "existence", data.validation, FeatureCache(model.backbone)) for model in (alone, together)
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)

    # And they have measured the images as one does.
    measured = domain_of(data, FeatureCache(backbone), LearnerGroup(backbone.device))
    assert metrics["existence"]["domain"] == pytest.approx(measured.card().model_dump(), rel=1e-3)

    train_rewards.run(config)
    assert "is done" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_what_a_person_has_to_change_reaches_them_as_one_sentence(tmp_path: Path) -> None:
    publish_feedback(tmp_path / "run", feedback_rows(tmp_path / "images", images=1))
    with pytest.raises(Exception) as caught:
        train_rewards.run(job_config(tmp_path / "run"))
    error = find_user_error(caught.value)
    assert error is not None and "label more images" in str(error)
    assert not (tmp_path / "run" / "rewards").exists()
