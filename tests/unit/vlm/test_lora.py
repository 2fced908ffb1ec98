"""Our LoRA layer against PEFT's own."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel
from support.paths import ROOT
from torch import Tensor, nn

from fgaif_ray.config import LoRAOptions
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.vlm.backbone import load_backbone
from fgaif_ray.vlm.lora import LoRALinear, with_own_layers

CHECKPOINT = str(ROOT / "fgaif_ray/shapes/checkpoints/policy")


class Network(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.first = nn.Linear(12, 20, dtype=dtype)
        self.second = nn.Linear(20, 6, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())  # type: ignore[no-any-return]


def adapted(base: nn.Module, *, own: bool) -> PeftModel:
    """The network with two adapters that change something, the second one active."""
    configs = [LoraConfig(r=rank, lora_alpha=6, target_modules=["first", "second"]) for rank in (4, 3)]
    if own:
        configs = [with_own_layers(config) for config in configs]
    model = PeftModel(copy.deepcopy(base), configs[0], adapter_name="one")
    model.add_adapter("two", configs[1])
    model.set_adapter("two")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def gradients(model: PeftModel, x: Tensor) -> dict[str, Tensor]:
    model(x).square().sum().backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1))


def test_outputs_and_gradients_are_those_of_peft(inputs: Tensor) -> None:
    base = Network(torch.float32)
    own, peft = adapted(base, own=True), adapted(base, own=False)
    assert sum(isinstance(module, LoRALinear) for module in own.modules()) == 2
    torch.testing.assert_close(own(inputs), peft(inputs))
    mine, theirs = gradients(own, inputs), gradients(peft, inputs)
    assert mine.keys() == theirs.keys() and len(mine) == 4
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name])


def test_without_adapters_it_is_the_frozen_network(inputs: Tensor) -> None:
    base = Network(torch.float32)
    own = adapted(base, own=True)
    with own.disable_adapter():
        assert torch.equal(own(inputs), base(inputs))


def test_dropout_is_left_to_peft(inputs: Tensor) -> None:
    config = with_own_layers(LoraConfig(r=4, lora_dropout=0.5, target_modules=["first"], init_lora_weights=False))
    model = PeftModel(Network(torch.float32), config).train()
    assert not torch.equal(model(inputs), model(inputs))


def test_adapters_of_a_bfloat16_network_train_in_float32(inputs: Tensor) -> None:
    base = Network(torch.bfloat16)
    found = gradients(adapted(base, own=True), inputs.bfloat16())
    exact = gradients(adapted(base.float(), own=True), inputs)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    for name, gradient in found.items():
        assert torch.nn.functional.cosine_similarity(gradient.flatten(), exact[name].flatten(), dim=0) > 0.999


def test_policies_and_reward_models_are_made_of_it() -> None:
    policy = PolicyModel(load_backbone(CHECKPOINT, "float32"), LoRAOptions(rank=2))
    reward = RewardModel(load_backbone(CHECKPOINT, "float32"))
    reward.add("existence", LoRAOptions(rank=2), seed=0)
    for backbone in (policy.backbone, reward.backbone):
        layers = len(backbone.model.model.language_model.layers)
        assert sum(isinstance(module, LoRALinear) for module in backbone.model.modules()) == 7 * layers
