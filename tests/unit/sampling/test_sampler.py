"""What sampling finds out before an engine starts, and seeds of its requests."""

from pathlib import Path

import pytest
from support.sampling_runs import make_config, write_images

from actors.sampling.sampler import request_seed
from fgaif_ray.errors import UserError
from jobs import sample


def test_model_that_is_no_vision_language_model_is_refused_before_anything_starts(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    with pytest.raises(UserError, match=r"broken: .*config\.json \(it is missing\)"):
        sample.run(make_config(tmp_path / "images", tmp_path / "run", model=str(tmp_path)))


def test_request_seeds_depend_on_run_and_sample() -> None:
    assert len({request_seed(0, "a"), request_seed(1, "a"), request_seed(0, "b")}) == 3
