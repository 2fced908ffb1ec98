"""Several responses to one image and prompt: their identities, and the beginnings that they may share."""

from collections import Counter
from pathlib import Path

import pytest
from support.paths import ROOT
from support.sampling_runs import POLICY, make_config

from actors.sampling.sampler import sampling_settings, shared_prefix
from fgaif_ray.config import load_config
from fgaif_ray.segments import split_segments
from fgaif_ray.sources import ImageSets
from fgaif_ray.storage import stages
from fgaif_ray.vlm.front_end import FrontEnd, load_front_end

TEXT = "There is a red circle. A blue square is visible. There is a green star."


@pytest.fixture(scope="module")
def front_end() -> FrontEnd:
    return load_front_end(str(POLICY))


def test_a_prefix_ends_with_a_segment_and_leaves_out_the_last(front_end: FrontEnd) -> None:
    ids = [*front_end.tokenizer(TEXT, add_special_tokens=False)["input_ids"], front_end.eos_token_id]
    prefixes = Counter(shared_prefix(front_end.tokenizer, ids, seed) for seed in range(300))
    assert {front_end.decode(prefix) for prefix in prefixes} == {
        "", "There is a red circle.", "There is a red circle. A blue square is visible.",
    }  # fmt: skip
    assert all(tuple(ids[: len(prefix)]) == prefix for prefix in prefixes)
    assert min(prefixes.values()) > 70  # each about as often as another


@pytest.mark.parametrize("text", ["", "A dog."])
def test_a_short_response_has_nothing_to_share(front_end: FrontEnd, text: str) -> None:
    assert len(split_segments(text)) < 2
    ids = [*front_end.tokenizer(text, add_special_tokens=False)["input_ids"], front_end.eos_token_id]
    assert shared_prefix(front_end.tokenizer, ids, 5) == ()


def test_the_first_response_is_the_same_however_many_follow(tmp_path: Path) -> None:
    config = make_config(tmp_path, tmp_path / "run")
    several = config.model_copy(
        update={"sample": config.sample.model_copy(update={"samples_per_prompt": 3, "shared_prefixes": True})}
    )
    assert sampling_settings(several) == sampling_settings(config)
    settings = [sampling_settings(one, number) for one in (config, several) for number in (1, 2)]
    assert all(one != other for place, one in enumerate(settings) for other in settings[:place])


@pytest.mark.parametrize("change", ["sample.samples_per_prompt=2", "sample.shared_prefixes=true"])
def test_responses_depend_on_how_many_there_are(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sets = ImageSets([("a.png",)], [("b.png",)], [("c.png",)])
    plain, changed = (
        stages.responses(load_config("configs/shapes.yaml", overrides), sets).fingerprint
        for overrides in ([], [change])
    )
    assert plain != changed
