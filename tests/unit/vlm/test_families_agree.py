"""Every family through the learner and the reward model, compared with what transformers alone makes of it."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL.Image import Image
from support.families import FAMILIES, Family, ask, build, photo, reference_log_probs
from support.ppo_steps import experience, toy_responses, update
from torch import Tensor

from fgaif_ray.config import LoRAOptions
from fgaif_ray.errors import UserError
from fgaif_ray.rewards.encoding import ScoringItem
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.rl.policy import EncodedRows, PolicyModel
from fgaif_ray.rl.self_check import disturbed
from fgaif_ray.vlm.backbone import Backbone, load_backbone

CHATTING = sorted(name for name, family in FAMILIES.items() if family.template_file)
QUESTION = "What is this?"
SIZES = ((100, 80), (200, 60), (40, 130), (300, 300))
LENGTHS = (5, 1, 9, 7, 4)
"""Tokens of the responses; the last two are to the last image and again to the second."""


@dataclass(frozen=True)
class Member:
    """A family's tiny checkpoint and the policy over it."""

    family: Family
    folder: Path
    policy: PolicyModel

    @property
    def banned(self) -> list[int]:
        return self.policy.backbone.front_end.banned_token_ids

    @property
    def tolerance(self) -> float:
        """Largest difference, nats: a state that is carried from token to token carries rounding with it."""
        return 5e-5 if self.family.name == "qwen3_5" else 1e-5

    def backbone(self) -> Backbone:
        return load_backbone(str(self.folder), "float32")

    def lora(self, *layers: str) -> LoRAOptions:
        return LoRAOptions(rank=4, alpha=8, target_modules=layers or self.family.linear_layers)

    def responses(self) -> list[list[int]]:
        """Random text."""
        banned = set(self.banned)
        words = [one for one in range(len(self.policy.backbone.front_end.tokenizer)) if one not in banned]
        generator = torch.Generator().manual_seed(0)
        return [[words[at] for at in torch.randint(len(words), (n,), generator=generator)] for n in LENGTHS]


@pytest.fixture(scope="module", params=CHATTING)
def member(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Member:
    family = FAMILIES[request.param]
    folder = build(family.name, tmp_path_factory.mktemp("families") / family.name)
    lora = LoRAOptions(rank=4, alpha=8, target_modules=family.linear_layers)
    return Member(family, folder, PolicyModel(load_backbone(str(folder), "float32"), lora))


@pytest.fixture(scope="module")
def images() -> list[Image]:
    """Of four sizes, and the second once more."""
    different = [photo(*size, seed) for seed, size in enumerate(SIZES)]
    return [*different, different[1]]


def encode(member: Member, images: Sequence[Image], responses: Sequence[Sequence[int]]) -> EncodedRows:
    return member.policy.encode([QUESTION] * len(images), images, responses)


@torch.no_grad()
def log_probs(member: Member, images: Sequence[Image], responses: Sequence[Sequence[int]]) -> list[Tensor]:
    found = member.policy.log_probs(encode(member, images, responses), "reference").log_probs
    return [row[: len(ids)] for row, ids in zip(found, responses, strict=True)]


def test_a_batch_of_mixed_images_scores_as_transformers_alone_does(member: Member, images: list[Image]) -> None:
    responses = member.responses()
    found = log_probs(member, images, responses)
    for image, ids, own in zip(images, responses, found, strict=True):
        asked = (member.folder, ask(QUESTION), [image], ids, member.banned)
        expected = reference_log_probs(*asked, logit_scale=member.family.logit_scale)
        torch.testing.assert_close(own, expected, rtol=0, atol=member.tolerance)


def test_a_row_scores_alike_alone_and_in_a_batch(member: Member, images: list[Image]) -> None:
    responses = member.responses()
    for image, ids, beside_others in zip(images, responses, log_probs(member, images, responses), strict=True):
        [alone] = log_probs(member, [image], [ids])
        torch.testing.assert_close(alone, beside_others, rtol=0, atol=member.tolerance)


@torch.no_grad()
def test_prompts_of_two_images_and_of_one_share_a_batch(member: Member, images: list[Image]) -> None:
    backbone, responses = member.policy.backbone, member.responses()
    shown = (images[:2], images[2:3])
    prompts = [backbone.front_end.encode_prompt(QUESTION, some) for some in shown]
    states = backbone.states(backbone.rows(prompts, responses[:2]), backbone.image_features(prompts))
    logits = backbone.model.get_output_embeddings()(states)  # [rows, tokens, vocabulary]
    for row, (some, prompt) in enumerate(zip(shown, prompts, strict=True)):
        ids, start = torch.tensor(responses[row]), len(prompt) - 1
        own = logits[row, start : start + len(ids)].log_softmax(dim=-1).gather(1, ids[:, None])[:, 0]
        [turn] = ask(QUESTION)
        asked = [turn | {"content": [*({"type": "image"} for _ in some), turn["content"][-1]]}]
        expected = reference_log_probs(member.folder, asked, some, responses[row])
        torch.testing.assert_close(own, expected, rtol=0, atol=member.tolerance)


def test_encoding_a_prompt_logs_nothing(
    member: Member, images: list[Image], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    member.policy.backbone.front_end.encode_prompt(QUESTION, images[:1])
    assert caplog.messages == []


def test_a_step_of_ppo_changes_policy_and_critic_and_not_the_reference(member: Member) -> None:
    model = PolicyModel(member.backbone(), member.lora())
    data = experience(model, toy_responses())
    with torch.no_grad():
        before = [model.log_probs(data.rows, role).log_probs for role in ("policy", "reference")]
        values = model.values(data.rows)
    update(model, data)
    with torch.no_grad():
        after = [model.log_probs(data.rows, role).log_probs for role in ("policy", "reference")]
        assert float((after[0] - before[0]).abs().max()) > 1e-4
        assert float((model.values(data.rows) - values).abs().max()) > 1e-4
    assert torch.equal(after[1], before[1])


def test_layers_that_are_computed_again_have_the_same_gradients(member: Member, images: list[Image]) -> None:
    found = []
    for checkpointing in (False, True):
        model = PolicyModel(member.backbone(), member.lora(), activation_checkpointing=checkpointing)
        with disturbed(model):
            rows = model.encode([QUESTION] * len(images), images, member.responses())
            model.log_probs(rows).log_probs.sum().backward()  # type: ignore[no-untyped-call]
        found.append([parameter.grad for parameter in model.policy_parameters().values()])
    for plain, again in zip(*found, strict=True):
        assert plain is not None and again is not None and float(plain.abs().max()) > 0
        torch.testing.assert_close(again, plain, rtol=1e-3, atol=1e-4)


def test_a_reward_model_judges_each_segment_by_its_image(member: Member, images: list[Image]) -> None:
    model = RewardModel(member.backbone())
    model.add("existence", member.lora(), seed=0)
    segments = (["A red ball. ", "It is round."], ["A dog."], ["A cat, ", "a mat, ", "a hat."], ["Nothing."])
    items = [ScoringItem([image], QUESTION, some) for image, some in zip(images, segments, strict=False)]
    scores = model.score("existence", items)
    assert [score.shape for score in scores] == [(len(some), 3) for some in segments]
    assert all(abs(score.sum(axis=1) - 1).max() < 1e-5 for score in scores)
    other = model.score("existence", [ScoringItem([photo(*SIZES[0], 7)], QUESTION, segments[0])])
    assert abs(other[0] - scores[0]).max() > 1e-3


def test_a_layer_that_is_not_there_is_told_with_those_that_are(member: Member) -> None:
    backbone = member.backbone()
    layers = r"choose lora\.target_modules among .*" + r".*".join(sorted(member.family.linear_layers))
    with pytest.raises(UserError, match=rf"has no linear layer 'fc9': {layers}.*\.$"):
        PolicyModel(backbone, member.lora("q_proj", "fc9"))


@pytest.mark.parametrize("name", sorted(name for name, family in FAMILIES.items() if not family.template_file))
def test_a_family_without_chat_template_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    sentence = f"{tmp_path} is not supported (it has no chat template; a chat_template.jinja would be one)"
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_backbone(str(build(name, tmp_path)))
