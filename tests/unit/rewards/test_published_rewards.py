"""Reward models that a service is to find."""

from pathlib import Path

import pytest
from support.reward_helpers import service_config

from actors.rewards import service as reward_service
from fgaif_ray.errors import UserError


def test_an_untrained_run_names_the_job_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"jobs\.train_rewards"):
        reward_service.published_reward_folders(service_config(tmp_path))
