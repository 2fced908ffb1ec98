"""Reward models that a service is to find."""

from pathlib import Path

import pytest
from support.reward_helpers import service_config

from fgaif_ray.errors import UserError
from fgaif_ray.rewards.files import published_reward_folders


def test_an_untrained_run_names_the_job_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"jobs\.train_rewards"):
        published_reward_folders(service_config(tmp_path))
