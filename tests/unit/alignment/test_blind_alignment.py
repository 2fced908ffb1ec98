"""Alignment with images hidden from the policy, from the reward models, or from both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
import torch
from PIL import Image
from support.preference_data import preference_run
from support.reward_helpers import CHECKPOINT

from actors.alignment import experience
from actors.alignment.experience import ExperienceSource
from actors.alignment.preference_learner import PreferenceLearner
from actors.alignment.rollout import PolicyVersion, Rollout, RolloutRequest
from actors.alignment.tasks import PreferenceTask
from fgaif_ray.blind import GREY, Blindfold
from fgaif_ray.pixel_budget import UNLIMITED
from fgaif_ray.rl.plan import Draw
from fgaif_ray.vlm.front_end import load_front_end

PROMPT = "Describe it."


class Rewards:
    """Notes what it is asked about."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []

    def score(self, items: list[dict[str, Any]]) -> list[Any]:
        self.items += items
        return []


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for number, path in enumerate(paths):
        Image.new("RGB", (60, 60), (60 * number, 90, 200)).save(path)
    return paths


@pytest.mark.parametrize("hidden", ["policy", "rewards", "both", "none"])
def test_each_is_shown_what_it_is_to_see(
    hidden: str, images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[RolloutRequest] = []

    def sample(_workers: Any, requests: Sequence[RolloutRequest], version: PolicyVersion) -> list[Rollout]:
        asked.extend(requests)
        return [Rollout((60, 2), (-1.0, -1.0), "stop", version.number, (1,)) for _ in requests]

    monkeypatch.setattr(experience, "sample", sample)
    seen, judged = (
        Blindfold("swapped" if hidden in (scope, "both") else "none", [(path,) for path in images], 0, str(tmp_path))
        for scope in ("policy", "rewards")
    )
    rewards: Any = Rewards()
    source = ExperienceSource(load_front_end(CHECKPOINT), (), rewards, UNLIMITED, seen.shown, judged.shown)
    draws = [Draw(f"0-{place}", (path,), PROMPT, place) for place, path in enumerate(images)]
    sampled = source.start(draws, PolicyVersion(0, "")).result()
    sampled.verdicts.result()
    source.close()
    sampled_about = [path for request in asked for path in request.images]
    judged_about = [path for item in rewards.items for path in item["images"]]
    shades = [picture.getpixel((0, 0))[0] // 60 for (picture,) in sampled.images]  # what the learner computes with
    assert [images[shade] for shade in shades] == sampled_about
    assert (sampled_about != images) == (hidden in ("policy", "both"))
    assert (judged_about != images) == (hidden in ("rewards", "both"))
    assert sorted(sampled_about) == sorted(judged_about) == images
    assert [draw.images for draw in sampled.draws] == [(path,) for path in images]


def test_preferences_are_learnt_from_grey_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    config = preference_run(tmp_path, "data.blind.policy=blank")
    learner = PreferenceLearner(PreferenceTask(config, str(tmp_path / "policy")))
    pairs, shown = learner._opened(learner._pairs)
    learner.close()
    assert len(pairs) == len(learner._pairs) and all(pair.images[0].startswith(str(tmp_path)) for pair in pairs)
    assert {colour for (picture,) in shown for _, colour in picture.getcolors() or ()} == {GREY}
