"""The running scale of rewards: what types are divided by, over steps, processes and interruptions."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing

from fgaif_ray.config import AlignConfig
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rewards.scale import LEAST_DEVIATION, RunningScale, ScaleKind, moments
from fgaif_ray.vlm.group import LearnerGroup

TYPES = ("existence", "relation")
TRUE, FALSE, ABSENT = (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)
OPTIONS = RewardOptions(weights={"existence": 1.0, "relation": 1.0})
ALONE = LearnerGroup(torch.device("cpu"))


def of_step(*segments: tuple[Any, Any]) -> Tensor:
    """Moments of one response whose segments have these verdicts."""
    return moments([list(segments)], OPTIONS)


def scaled(kind: ScaleKind, *steps: Tensor, window: int = 10) -> dict[str, float]:
    scale = RunningScale(kind, window, TYPES)
    for one in steps:
        scale.add(one, ALONE)
    return scale.factors()


def test_equal_weights_pay_a_type_in_one_segment_of_four_twice_by_its_root_mean_square() -> None:
    step = of_step((TRUE, TRUE), (TRUE, ABSENT), (TRUE, ABSENT), (TRUE, ABSENT))
    assert scaled("running_rms", step) == pytest.approx({"existence": 1.0, "relation": 2.0})


def test_the_standard_deviation_is_measured_from_the_mean() -> None:
    step = of_step((TRUE, TRUE), (TRUE, FALSE), (TRUE, ABSENT), (FALSE, ABSENT))
    assert scaled("running_std", step) == pytest.approx({"existence": 0.75**-0.5, "relation": 0.5**-0.5})


@pytest.mark.parametrize("verdict", [TRUE, ABSENT])
@pytest.mark.parametrize("kind", ["running_std", "running_rms"])
def test_a_type_without_spread_does_not_explode(kind: ScaleKind, verdict: tuple[float, ...]) -> None:
    factor = scaled(kind, of_step(*[(verdict, verdict)] * 4))["existence"]
    assert factor == (1.0 if kind == "running_rms" and verdict == TRUE else 1 / LEAST_DEVIATION)


def test_before_any_segment_nothing_is_scaled() -> None:
    assert scaled("running_std", moments([], OPTIONS)) == {"existence": 1.0, "relation": 1.0}


def test_steps_beyond_the_window_are_forgotten() -> None:
    rare, common = of_step((TRUE, TRUE), *[(TRUE, ABSENT)] * 3), of_step((TRUE, TRUE))
    assert scaled("running_rms", rare, common, common, window=2)["relation"] == 1.0
    assert scaled("running_rms", rare, common, common, window=3)["relation"] == pytest.approx(2**0.5)


def test_weights_say_how_much_a_type_counts_in_units_of_its_deviation() -> None:
    scale = RunningScale("running_rms", 10, TYPES)
    scale.add(of_step((TRUE, TRUE), *[(TRUE, ABSENT)] * 3), ALONE)
    assert scale.weights({"existence": 3.0, "relation": 0.5}) == pytest.approx({"existence": 3.0, "relation": 1.0})


def test_the_weight_of_novelty_stays_the_gate_that_it_is() -> None:
    options = RewardOptions(weights={"existence": 1.0, "novelty": 0.5})
    scale = RunningScale("running_rms", 10, options.types)
    new, repeats = TRUE, FALSE
    scale.add(moments([[(TRUE, new), (TRUE, repeats)]], options), ALONE)
    assert scale.weights(options.weights) == pytest.approx({"existence": (1.25 / 2) ** -0.5, "novelty": 0.5})


def test_weights_do_not_change_what_is_measured() -> None:
    doubled = RewardOptions(weights={"existence": 2.0, "relation": 0.0})
    verdicts = [[(TRUE, FALSE), (FALSE, ABSENT)]]
    assert moments(verdicts, doubled).equal(moments(verdicts, OPTIONS))


def test_a_resumed_scale_is_the_uninterrupted_one() -> None:
    steps = [of_step((TRUE, FALSE)), of_step(((0.1, 0.7, 0.2), ABSENT)), of_step(((0.3, 0.3, 0.4), TRUE))]
    straight, killed = (RunningScale("running_std", 2, TYPES) for _ in range(2))
    for one in steps[:2]:
        straight.add(one, ALONE)
        killed.add(one, ALONE)
    resumed = RunningScale("running_std", 2, TYPES)
    resumed.load_state_dict(json.loads(json.dumps(killed.state_dict())))
    straight.add(steps[2], ALONE)
    resumed.add(steps[2], ALONE)
    assert resumed.factors() == straight.factors()


def one_of_two(rank: int, port: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    scale = RunningScale("running_rms", 10, TYPES)
    own = of_step((TRUE, TRUE)) if rank else of_step(*[(TRUE, ABSENT)] * 3)
    scale.add(own, LearnerGroup(torch.device("cpu")))
    Path(folder, f"{rank}.json").write_text(json.dumps(scale.factors()))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_scale_alike_by_the_segments_of_all(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(one_of_two, (port, str(tmp_path)), nprocs=2)
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx({"existence": 1.0, "relation": 2.0})


def test_grpo_has_a_scale_of_its_own_and_takes_no_other() -> None:
    with pytest.raises(ValueError, match=r"leave align\.reward\.scale at none"):
        AlignConfig.model_validate({"algorithm": "grpo", "samples_per_prompt": 2, "reward": {"scale": "running_std"}})
