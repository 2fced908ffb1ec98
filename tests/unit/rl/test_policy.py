"""Policy, reference and critic over one backbone: each against a plain forward pass of the same model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from support.paths import ROOT

from fgaif_ray.config import LoRAOptions
from fgaif_ray.errors import UserError
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.rewards.model_files import save_reward_model
from fgaif_ray.rl import policy as policy_module
from fgaif_ray.rl.policy import EncodedRows, PolicyModel
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import draw_scenes
from fgaif_ray.vlm import passes
from fgaif_ray.vlm.backbone import Backbone, load_backbone
from fgaif_ray.vlm.merging import merged_weights

CHECKPOINT = str(ROOT / "fgaif_ray/shapes/checkpoints/policy")
LORA = LoRAOptions(rank=4, alpha=8)
PROMPTS = ["Describe this image in detail.", "What is shown?", "Describe this image in detail."]
RESPONSES = [[70, 80, 90, 2], [100, 2], [60, 61, 62, 63, 64, 65, 2]]


def backbone() -> Backbone:
    return load_backbone(CHECKPOINT, "float32")


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (60, 60, 3), dtype=np.uint8))


def disturbed(model: PolicyModel) -> PolicyModel:
    """The model with adapters that change something."""
    generator = torch.Generator().manual_seed(1)
    parameters = model.policy_parameters() | model.critic_parameters()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def model() -> PolicyModel:
    return disturbed(PolicyModel(backbone(), LORA))


@pytest.fixture
def images() -> list[Image.Image]:
    return [noise(seed) for seed in range(3)]


def naive_log_probs(network: Any, base: Backbone, row: int, image: Image.Image) -> torch.Tensor:
    """Log-probabilities of one response by a whole forward pass of `network` on pixels, unpadded."""
    prompt = base.front_end.encode_prompt(PROMPTS[row], [image])
    ids = torch.tensor([[*prompt.input_ids, *RESPONSES[row]]])
    logits = network(input_ids=ids, **prompt.image_inputs).logits[0]
    logits[:, base.front_end.banned_token_ids] = float("-inf")
    log_probs = logits[len(prompt) - 1 : -1].log_softmax(dim=-1)
    return log_probs.gather(1, torch.tensor(RESPONSES[row])[:, None]).squeeze(1)


def test_log_probs_are_those_of_a_plain_forward_pass(model: PolicyModel, images: list[Image.Image]) -> None:
    rows = model.encode(PROMPTS, images, RESPONSES)
    log_probs = model.log_probs(rows).log_probs
    model.log_probs(rows)  # the policy's adapter is the active one now
    for row, image in enumerate(images):
        naive = naive_log_probs(model.backbone.model, model.backbone, row, image)
        assert torch.allclose(log_probs[row, : len(naive)], naive, atol=1e-5)


def test_padding_is_zero(model: PolicyModel, images: list[Image.Image]) -> None:
    scored = model.log_probs(model.encode(PROMPTS, images, RESPONSES), with_entropy=True)
    assert scored.entropies is not None
    for figures in (scored.log_probs, scored.entropies):
        assert [int(row.count_nonzero()) for row in figures] == [4, 2, 7]


def test_the_reference_is_the_backbone_without_adapters(model: PolicyModel, images: list[Image.Image]) -> None:
    rows = model.encode(PROMPTS, images, RESPONSES)
    reference = model.log_probs(rows, "reference").log_probs
    plain = backbone()
    for row, image in enumerate(images):
        naive = naive_log_probs(plain.model, plain, row, image)
        assert torch.allclose(reference[row, : len(naive)], naive, atol=1e-5)


def test_a_new_policy_is_the_reference(images: list[Image.Image]) -> None:
    model = PolicyModel(backbone(), LORA)
    rows = model.encode(PROMPTS, images, RESPONSES)
    assert torch.equal(model.log_probs(rows).log_probs, model.log_probs(rows, "reference").log_probs)


def test_the_passes_do_not_disturb_each_other(model: PolicyModel, images: list[Image.Image]) -> None:
    rows = model.encode(PROMPTS, images, RESPONSES)
    before = model.log_probs(rows).log_probs
    model.values(rows)
    model.log_probs(rows, "reference")
    assert torch.equal(model.log_probs(rows).log_probs, before)


def test_a_row_scores_alike_alone_and_in_a_batch(model: PolicyModel, images: list[Image.Image]) -> None:
    together = model.encode(PROMPTS, images, RESPONSES)
    log_probs, values = model.log_probs(together).log_probs, model.values(together)
    for row in range(3):
        alone = model.encode(PROMPTS[row : row + 1], images[row : row + 1], RESPONSES[row : row + 1])
        length = len(RESPONSES[row])
        assert torch.allclose(model.log_probs(alone).log_probs[0], log_probs[row, :length], atol=1e-5)
        assert torch.allclose(model.values(alone)[0], values[row, :length], atol=1e-5)


def test_selected_rows_keep_their_places(model: PolicyModel, images: list[Image.Image]) -> None:
    rows = model.encode(PROMPTS, images, RESPONSES)
    order = torch.tensor([2, 0])
    selected = model.log_probs(rows.select(order)).log_probs
    assert torch.allclose(selected, model.log_probs(rows).log_probs[order], atol=1e-5)


def test_chunks_hold_every_row_once_in_order_of_length(model: PolicyModel, images: list[Image.Image]) -> None:
    rows = model.encode(PROMPTS, images, RESPONSES)
    order = torch.cat(list(rows.chunks(2))).tolist()
    lengths = rows.lengths[torch.tensor(order)].tolist()
    assert sorted(order) == [0, 1, 2]
    assert lengths == sorted(lengths)


def test_logits_in_pieces_give_the_same_gradients(
    model: PolicyModel, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradients(rows: EncodedRows) -> list[torch.Tensor]:
        scored = model.log_probs(rows, with_entropy=True)
        assert scored.entropies is not None
        (scored.log_probs.sum() + scored.entropies.sum()).backward()
        taken = [parameter.grad.clone() for parameter in model.policy_parameters().values()]
        model.zero_grad()
        return taken

    rows = model.encode(PROMPTS, images, RESPONSES)
    whole = gradients(rows)
    monkeypatch.setattr(passes, "LOGITS_PER_CHUNK", 5 * 487)
    pieces = gradients(rows)
    assert all((a - b).norm() < 1e-5 * a.norm() for a, b in zip(whole, pieces, strict=True))  # the rest is rounding


def test_the_temperature_divides_the_logits(images: list[Image.Image]) -> None:
    base = backbone()
    model = PolicyModel(base, LORA, temperature=2.0)
    log_probs = model.log_probs(model.encode(PROMPTS, images, RESPONSES), "reference").log_probs
    prompt = base.front_end.encode_prompt(PROMPTS[1], images[1:2])
    ids = torch.tensor([[*prompt.input_ids, 100]])
    with torch.no_grad():
        logits = backbone().model(input_ids=ids, **prompt.image_inputs).logits[0, -2] / 2.0
    logits[base.front_end.banned_token_ids] = float("-inf")
    assert log_probs[1, 0] == pytest.approx(float(logits.log_softmax(dim=-1)[100]), abs=1e-5)


def test_nothing_but_the_language_model_is_adapted(model: PolicyModel) -> None:
    names = [*model.policy_parameters(), *model.critic_parameters()]
    assert all(".language_model." in name or name.startswith("value_head.") for name in names)
    assert len(names) == 2 * (4 * 7 * 2) + 2


def test_an_image_in_several_rows_is_read_once(model: PolicyModel) -> None:
    image = noise(0)
    rows = model.encode(PROMPTS, [image, noise(1), image], RESPONSES)
    assert len(rows.features) == 2
    assert rows.image_index.tolist() == [0, 1, 0]


def test_several_images_of_a_row_are_read_in_order_and_once(model: PolicyModel) -> None:
    first, second, prompt = noise(0), noise(1), "Is <image> like <image>?"
    prompts, images = [prompt, prompt, PROMPTS[0]], [(first, second), (first, second), first]
    rows = model.encode(prompts, images, RESPONSES)
    assert rows.image_index.tolist() == [0, 0, 1]
    assert tuple(rows.input_ids[0, : rows.prompt_lengths[0]].tolist()) == (
        model.backbone.front_end.encode_prompt(prompt, [first, second]).input_ids
    )
    swapped = model.encode([prompt], [(second, first)], RESPONSES[:1])
    own, other = model.log_probs(rows.select(torch.tensor([0]))).log_probs, model.log_probs(swapped).log_probs
    assert not torch.allclose(own[:, : other.shape[1]], other, atol=1e-3)


@pytest.mark.parametrize(("prompts", "responses"), [([], []), (["a"], [[]]), (["a", "b"], [[5]])])
def test_rows_must_be_complete(model: PolicyModel, prompts: list[str], responses: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="prompts, images and responses"):
        model.encode(prompts, [noise(0)] * len(prompts), responses)


def test_a_new_critic_values_nothing(images: list[Image.Image]) -> None:
    model = PolicyModel(backbone(), LORA)
    assert int(model.values(model.encode(PROMPTS, images, RESPONSES)).count_nonzero()) == 0


def test_the_critic_sees_the_image() -> None:
    """Told that the same words are worth 1 beside one image and -1 beside another, it learns to tell them apart."""
    model = PolicyModel(backbone(), LORA)
    pictures = [render(scene) for scene in draw_scenes("heldout", range(2))]
    rows = model.encode(PROMPTS[:1] * 2, pictures, RESPONSES[:1] * 2)
    wanted = torch.tensor([[1.0], [-1.0]]).expand(2, 4)
    optimizer = torch.optim.Adam(model.critic_parameters().values(), lr=3e-3)
    for _ in range(60):
        loss = (model.values(rows) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    values = model.values(rows)
    assert bool((values[0] > 0.5).all())
    assert bool((values[1] < -0.5).all())


def test_the_critic_learns_without_moving_the_policy(model: PolicyModel, images: list[Image.Image]) -> None:
    rows = model.encode(PROMPTS, images, RESPONSES)
    model.values(rows).sum().backward()
    assert all(parameter.grad is not None for parameter in model.critic_parameters().values())
    assert all(parameter.grad is None for parameter in model.policy_parameters().values())


def test_the_saved_adapter_is_a_peft_adapter(model: PolicyModel, images: list[Image.Image], tmp_path: Path) -> None:
    model.save_policy(tmp_path)
    plain = backbone()
    loaded = PeftModel.from_pretrained(plain.model, str(tmp_path))
    mine = model.log_probs(model.encode(PROMPTS, images, RESPONSES)).log_probs
    for row, image in enumerate(images):
        naive = naive_log_probs(loaded, plain, row, image)
        assert torch.allclose(mine[row, : len(naive)], naive, atol=1e-5)


def test_merged_weights_are_the_policy(model: PolicyModel, images: list[Image.Image], tmp_path: Path) -> None:
    model.save_policy(tmp_path)
    merged = dict(merged_weights(CHECKPOINT, str(tmp_path)))
    assert set(merged) == set(load_file(Path(CHECKPOINT, "model.safetensors")))
    plain = backbone()
    prefix = "language_model.model."
    named = {
        f"model.language_model.{name.removeprefix(prefix)}": tensor
        for name, tensor in merged.items()
        if name.startswith(prefix)
    }
    assert plain.model.load_state_dict(named, strict=False).unexpected_keys == []
    mine = model.log_probs(model.encode(PROMPTS, images, RESPONSES)).log_probs
    naive = naive_log_probs(plain.model, plain, 2, images[2])
    assert torch.allclose(mine[2], naive, atol=1e-5)


def test_the_trained_state_brings_everything_back(model: PolicyModel, images: list[Image.Image]) -> None:
    other = PolicyModel(backbone(), LORA, seed=5)
    other.load_trained_state(model.trained_state())
    rows = model.encode(PROMPTS, images, RESPONSES)
    assert torch.equal(other.log_probs(rows).log_probs, model.log_probs(rows).log_probs)
    assert torch.equal(other.values(rows), model.values(rows))


def test_a_state_of_another_model_is_refused(model: PolicyModel) -> None:
    state = model.trained_state()
    state.pop("value_head.bias")
    with pytest.raises(ValueError, match="other parameters"):
        model.load_trained_state(state)


def test_the_seed_decides_the_first_weights() -> None:
    first, same, other = (PolicyModel(backbone(), LORA, seed=seed).trained_state() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_critic_starts_from_a_reward_model(tmp_path: Path) -> None:
    reward = RewardModel(backbone())
    reward.add("existence", LoRAOptions(rank=2, alpha=2), seed=3)
    with torch.no_grad():
        for parameter in reward.trainable_parameters("existence"):
            parameter.normal_()
    save_reward_model(reward, "existence", tmp_path)
    model = PolicyModel(backbone(), LORA, critic_from=str(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    mine = {name.replace(".critic.", "."): value for name, value in model.critic_parameters().items()}
    assert all(torch.equal(mine[name], tensor) for name, tensor in saved.items())


def test_a_critic_of_another_model_is_refused(model: PolicyModel, tmp_path: Path) -> None:
    model.save_policy(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors.pop(next(iter(tensors)))
    policy_module.save_file(tensors, weights)
    with pytest.raises(UserError, match="belongs to another model"):
        PolicyModel(backbone(), LORA, critic_from=str(tmp_path))


def test_checkpointed_activations_give_the_same_gradients(images: list[Image.Image]) -> None:
    found = []
    for checkpointing in (False, True):
        model = disturbed(PolicyModel(backbone(), LORA, activation_checkpointing=checkpointing))
        passes: list[int] = []
        decoder: Any = model.backbone.decoder
        decoder.layers[0].mlp.register_forward_pre_hook(lambda *_, seen=passes: seen.append(1))
        rows = model.encode(PROMPTS, images, RESPONSES)
        model.log_probs(rows).log_probs.sum().backward()
        model.values(rows).sum().backward()
        parameters = model.policy_parameters() | model.critic_parameters()
        found.append((len(passes), {name: parameter.grad for name, parameter in parameters.items()}))
    (passes_kept, kept), (passes_again, again) = found
    assert (passes_kept, passes_again) == (2, 4)
    for name, gradient in kept.items():
        assert gradient is not None
        torch.testing.assert_close(gradient, again[name], rtol=0, atol=0)
