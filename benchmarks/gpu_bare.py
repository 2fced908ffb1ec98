"""The loops that `benchmarks.gpu` compares with: the same passes over the same batches, in plain torch.

They reuse the model with its adapters, and are given for nothing what a program must work out: padded ids with their
positions, features of images, the places that are read, pixels on the device. They know no rewards, clipping,
statistics or optimiser.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rewards.encoding import ScoringItem, encode_item
from fgaif_ray.rewards.model import SCORING_BATCH, RewardModel
from fgaif_ray.rl.policy import EncodedRows, PolicyModel
from fgaif_ray.vlm.backbone import Backbone
from fgaif_ray.vlm.inputs import EncodedPrompt


def adapted_layers(backbone: Backbone) -> list[Any]:
    """The layers that hold adapters."""
    return [module for module in backbone.model.modules() if isinstance(module, BaseTunerLayer)]


@dataclass(frozen=True, slots=True)
class _Batch:
    arguments: dict[str, Any]
    """Of the multimodal model: ids, positions, features of the images."""
    row_of: Tensor
    """``[response_tokens_of_all_rows]``."""
    positions: Tensor
    """The same: of the token before each response token."""
    targets: Tensor
    """The same: ids of the response tokens."""


class BareUpdate:
    """Passes of a PPO update without PPO: cross-entropy for the policy, squared values for the critic.

    Both train whichever adapter is active; what is computed is the same for either.
    """

    def __init__(
        self,
        model: PolicyModel,
        rows: EncodedRows,
        *,
        micro_batches: Iterable[Tensor],
        passes: Iterable[Tensor],
        epochs: int,
    ) -> None:
        """Prepares the batches.

        Args:
            model: as `PPOUpdater` trains it.
            rows: the responses.
            micro_batches: ``[rows]`` int64 indices of each forward and backward pass of an epoch.
            passes: likewise of each pass without gradients; none leaves them out.
            epochs: times that the micro-batches are gone through.
        """
        backbone = model.backbone
        self._multimodal, self._value_head, self._epochs = backbone.multimodal, model.value_head, epochs
        self._vocabulary_head = backbone.model.get_output_embeddings()
        self._layers = adapted_layers(backbone)
        self._parameters = list(model.parameters())
        self._with_gradients = [_batch(backbone, rows.select(chunk)) for chunk in micro_batches]
        self._without = [_batch(backbone, rows.select(chunk)) for chunk in passes]

    def run(self) -> None:
        """Policy, reference and critic without gradients, then policy and critic forward and backward."""
        with torch.no_grad():
            for batch in self._without:
                self._policy(batch)
            with self._without_adapters():
                for batch in self._without:
                    self._policy(batch)
            for batch in self._without:
                self._critic(batch)
        for _ in range(self._epochs):
            for batch in self._with_gradients:
                self._policy(batch).backward()
                self._critic(batch).backward()
        for parameter in self._parameters:
            parameter.grad = None

    def _states(self, batch: _Batch) -> Tensor:
        states: Tensor = self._multimodal(**batch.arguments, use_cache=False).last_hidden_state
        return states[batch.row_of, batch.positions]  # [response_tokens_of_all_rows, hidden]

    def _policy(self, batch: _Batch) -> Tensor:
        logits = self._vocabulary_head(self._states(batch))  # [response_tokens_of_all_rows, vocabulary]
        return nn.functional.cross_entropy(logits.float(), batch.targets)

    def _critic(self, batch: _Batch) -> Tensor:
        values: Tensor = self._value_head(self._states(batch).float())  # [response_tokens_of_all_rows, 1]
        return values.square().mean()

    @contextmanager
    def _without_adapters(self) -> Iterator[None]:
        for layer in self._layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)


class BareScoring:
    """Forward passes of the batches that `RewardModel.score_types` makes, one for each fact type."""

    def __init__(self, model: RewardModel, items: Sequence[ScoringItem]) -> None:
        """Prepares the batches."""
        backbone = model.backbone
        self._backbone, self._heads = backbone, [model.heads[name] for name in FACT_TYPES]
        encoded = [encode_item(backbone, item) for item in items]
        self.lengths = [len(item) for item in encoded]
        """Tokens of each response with its prompt and image."""
        order = sorted(range(len(items)), key=lambda index: self.lengths[index])
        self._batches = []
        for start in range(0, len(order), SCORING_BATCH):
            chosen = order[start : start + SCORING_BATCH]
            prompts = [encoded[index].prompt for index in chosen]
            places = [(row, place) for row, index in enumerate(chosen) for place in encoded[index].separators]
            self._batches.append(
                (
                    [_on_device(prompt, backbone.device) for prompt in prompts],
                    backbone.rows(prompts, [encoded[index].text_ids for index in chosen]),
                    torch.tensor(places, device=backbone.device).unbind(dim=1),  # [separators] each
                )
            )

    @torch.no_grad()
    def run(self) -> list[Tensor]:
        """Vision tower, then three passes of the decoder, with whichever adapter is active; the class logits."""
        found = []
        for prompts, inputs, (rows, columns) in self._batches:
            features = self._backbone.image_features(prompts)
            for head in self._heads:
                states = self._backbone.states(inputs, features)
                found.append(head(states[rows, columns].float()))
        return [logits.cpu() for logits in found]


def _batch(backbone: Backbone, rows: EncodedRows) -> _Batch:
    offsets = torch.arange(rows.response_width, device=backbone.device)  # [response_width]
    row_of, place = (offsets < rows.response_lengths[:, None]).nonzero(as_tuple=True)
    positions = rows.prompt_lengths[row_of] - 1 + place
    arguments = backbone.arguments(rows.inputs, rows.row_features())
    return _Batch(arguments, row_of, positions, rows.input_ids[row_of, positions + 1])


def _on_device(prompt: EncodedPrompt, device: torch.device) -> EncodedPrompt:
    return replace(prompt, image_inputs={name: tensor.to(device) for name, tensor in prompt.image_inputs.items()})
