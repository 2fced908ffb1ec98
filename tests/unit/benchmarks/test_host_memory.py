"""What `benchmarks.host_memory` makes of what it sees."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.host_memory import DRIVER, RAY, STORE, Look, Measured, configure, role_of, write_photographs


def looks(*memory: float) -> list[Look]:
    """Of a driver, at equal distances, and a store that holds a tenth of it."""
    return [
        Look(index / (len(memory) - 1), {DRIVER: mib, STORE: mib / 10, "learners": 100.0})
        for index, mib in enumerate(memory)
    ]


def test_memory_that_grows_is_seen_and_the_first_steps_do_not_count() -> None:
    flat = Measured(looks(20, *[200] * 10), 8.0).figures(images=4)
    assert flat == {"growth": 1.0, "largest_growth": 1.0, "store_peak_mib": 20.0, "store_mib_per_image": 2.0}
    grown = Measured(looks(200, 200, 200, 200, 300, 300, 300, 400, 400, 400, 400), 8.0).figures(images=4)
    assert grown["largest_growth"] == 2.0
    assert grown["growth"] == pytest.approx((400 + 40 + 100) / (200 + 20 + 100), abs=1e-4)


def test_too_few_steps_are_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was seen at the start"):
        Measured(looks(200, 200), 0.0).figures(images=4)


def test_roles_are_told_by_the_titles_of_processes() -> None:
    titles = ("ray::MapWorker(MapBatches(Sampler)).submit", "ray::RolloutWorker.generate", "ray::RayTrainWorker")
    assert [role_of(title) for title in titles] == ["samplers", "rollout workers", "learners"]
    served = ("ray::ServeReplica:rewards:SharedReward", "ray::ServeReplica:rewards:RewardGateway", "gcs_server")
    assert [role_of(title) for title in served] == ["reward replicas", "reward gateway", RAY]


def test_no_two_photographs_are_the_same(tmp_path: Path) -> None:
    assert write_photographs(tmp_path / "images", 3, 0.01) > 0
    files = [path.read_bytes() for path in sorted((tmp_path / "images").iterdir())]
    assert len(set(files)) == 3
    with Image.open(tmp_path / "images" / "00000.jpg") as image:
        assert image.size == (100, 100)


def test_every_response_is_about_an_image_of_its_own(tmp_path: Path) -> None:
    config = configure(str(tmp_path), steps=3, batch=8)
    assert (config.align.rollout_batch_size, config.align.samples_per_prompt) == (8, 1)
    assert config.data.align_images == 3 * 8
