"""Reward models that a service is to find."""

from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support.reward_helpers import CHECKPOINT, save_reward_models, service_config

from fgaif_ray.errors import BrokenFileError, UserError
from fgaif_ray.rewards.files import HEAD_FILE, published_reward_folders, read_folder
from fgaif_ray.rewards.model_files import load_reward_model
from fgaif_ray.vlm.backbone import load_backbone


def test_an_untrained_run_names_the_job_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"jobs\.train_rewards"):
        published_reward_folders(service_config(tmp_path))


@pytest.mark.parametrize("classes", ["hallucinated,consistent,absent", "absent,consistent", ""])
def test_a_head_of_other_classes_is_refused(tmp_path: Path, classes: str) -> None:
    """Its numbers fit, and mean something else."""
    folder = save_reward_models(tmp_path)["existence"]
    head = Path(folder) / HEAD_FILE
    with safe_open(head, "numpy") as file:
        metadata = file.metadata()
    save_file(load_file(head), head, metadata | {"classes": classes})
    with pytest.raises(BrokenFileError, match="its classes are"):
        read_folder(folder)
    with pytest.raises(BrokenFileError, match="its classes are"):
        load_reward_model(load_backbone(CHECKPOINT), {"existence": folder})
