"""A backbone that cannot carry reward models is told before anything is trained or served."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.families import FAMILIES, build
from support.reward_helpers import CHECKPOINT, save_reward_models
from support.reward_training import feedback_rows, job_config, publish_feedback

from actors.rewards.service import RewardScorer, ScorerSettings
from actors.rewards.trainer import Reporter, _prepare
from fgaif_ray.errors import UserError
from fgaif_ray.pixel_budget import UNLIMITED, PixelBudget
from fgaif_ray.rewards.self_check import check_backbone, probe_items
from fgaif_ray.vlm.backbone import Backbone, load_backbone
from fgaif_ray.vlm.front_end import FrontEnd
from fgaif_ray.vlm.probes import SelfCheckError

CHATTING = sorted(name for name, family in FAMILIES.items() if family.template_file)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("qwen2_5_vl", tmp_path_factory.mktemp("family"))


@pytest.fixture
def backbone(family: Path) -> Backbone:
    return load_backbone(str(family), "float32")


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("name", CHATTING)
def test_every_family_passes(name: str, images: int, tmp_path: Path) -> None:
    assert check_backbone(load_backbone(str(build(name, tmp_path)), "float32"), images) > 1e-3


def test_probes_are_equal_but_for_what_the_first_two_show() -> None:
    first, second, several = probe_items(images=3)
    assert (first.prompt, first.segments) == (second.prompt, second.segments)
    assert first.images[0].size == second.images[0].size and first.images[0].tobytes() != second.images[0].tobytes()
    assert len(several.images) == 2 and len(probe_items()) == 2
    assert all(
        image.width * image.height <= 900 for item in probe_items(2, PixelBudget(max=900)) for image in item.images
    )


def fewer_features(backbone: Backbone) -> None:
    own = backbone.model.get_image_features

    def fewer(**inputs: Any) -> Any:
        output = own(**inputs)
        output.pooler_output = [one[1:] for one in output.pooler_output]
        return output

    backbone.model.get_image_features = fewer


def equal_features(backbone: Backbone) -> None:
    backbone.image_features = lambda prompts: [  # type: ignore[method-assign]
        replace(one, planes=torch.zeros_like(one.planes)) for one in Backbone.image_features(backbone, prompts)
    ]


def infinite_states(backbone: Backbone) -> None:
    backbone.states = lambda *some: Backbone.states(backbone, *some) * torch.inf  # type: ignore[method-assign]


def one_token_later(backbone: Backbone) -> None:
    """A tokenizer whose offsets are those of the token before."""
    own = backbone.front_end.tokenizer

    class Shifted:
        def __getattr__(self, name: str) -> Any:
            return getattr(own, name)

        def __call__(self, text: str, **options: Any) -> Any:
            encoded = own(text, **options)
            if "offset_mapping" in encoded:
                encoded["offset_mapping"] = [(0, 0), *encoded["offset_mapping"][:-1]]
            return encoded

    backbone.front_end.tokenizer = Shifted()


BROKEN = {
    "image tokens cannot take .* image features": fewer_features,
    "does not see its images": equal_features,
    "not finite": infinite_states,
    "does not cut text where segments end": one_token_later,
}


@pytest.mark.parametrize(("said", "break_it"), BROKEN.items())
def test_what_does_not_fit_is_told(said: str, break_it: Callable[[Backbone], None], backbone: Backbone) -> None:
    break_it(backbone)
    with pytest.raises(SelfCheckError, match=said):
        check_backbone(backbone)


def test_a_processor_that_refuses_an_image_is_told(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise KeyError("height")

    monkeypatch.setattr(backbone.front_end, "encode_prompt", refuse)
    with pytest.raises(SelfCheckError, match="does not read a response to an image: 'height'"):
        check_backbone(backbone)


def test_a_backbone_with_too_few_positions_is_told(backbone: Backbone) -> None:
    backbone.model.config.get_text_config().max_position_embeddings = 20
    with pytest.raises(SelfCheckError, match=r"to 224 x 224 pixels takes \d+ tokens and it reads 20: lower data"):
        check_backbone(backbone)


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image is read as the same one."""
    encode = FrontEnd.encode_prompt
    grey = probe_items()[0].images[0]
    monkeypatch.setattr(
        FrontEnd, "encode_prompt", lambda own, prompt, images: encode(own, prompt, [grey] * len(images))
    )


@pytest.mark.usefixtures("blind")
def test_training_does_not_begin_on_it(tmp_path: Path) -> None:
    publish_feedback(tmp_path / "run", feedback_rows(tmp_path / "images", images=4))
    config = job_config(tmp_path / "run", epochs=1)
    with pytest.raises(UserError, match=r"cannot be the backbone of the reward models \(it does not see its images"):
        _prepare(config, str(tmp_path / "run" / "feedback"), Reporter(None))


@pytest.mark.usefixtures("blind")
def test_it_is_not_served(tmp_path: Path) -> None:
    folders = save_reward_models(tmp_path)
    versions = dict.fromkeys(folders, "v")
    settings = ScorerSettings(CHECKPOINT, "float32", "none", False, folders, 4, None, versions, UNLIMITED, {})
    with pytest.raises(UserError, match=rf"{CHECKPOINT} cannot be the backbone .* `fgaif check-model {CHECKPOINT}`"):
        RewardScorer(settings)
