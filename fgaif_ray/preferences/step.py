"""One step on preference pairs: reference and policy over both of each pair, the loss, and the optimiser.

With several learner processes every one works on its own pairs, and what concerns the whole batch is summed over them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from PIL.Image import Image
from torch import Tensor

from fgaif_ray.config import DPOConfig
from fgaif_ray.preferences.encoding import EncodedPair
from fgaif_ray.preferences.loss import batch_metrics, log_ratio, preference_loss, summed
from fgaif_ray.rl.optimiser import AdapterOptimiser
from fgaif_ray.rl.policy import POLICY, EncodedRows, PolicyModel
from fgaif_ray.vlm.group import LearnerGroup
from fgaif_ray.vlm.schedule import learning_rate_scale

SUMS: Final = 5


class DPOUpdater:
    """The optimiser, and a step of it on a batch of pairs.

    Example: ``DPOUpdater(model, DPOConfig(), group, 100).update(pairs, images, 0)``
    """

    def __init__(self, model: PolicyModel, config: DPOConfig, group: LearnerGroup, total_steps: int) -> None:
        """Starts with a new optimiser.

        Args:
            model: whose policy is trained; its critic, if it has one, is left alone.
            config: of the update.
            group: the learner processes.
            total_steps: steps of the run.
        """
        self._model, self._config, self._group, self._total_steps = model, config, group, total_steps
        self._optimiser = AdapterOptimiser(
            {POLICY: model.policy_parameters()}, {POLICY: config.learning_rate}, config.max_grad_norm, group
        )

    def update(self, pairs: Sequence[EncodedPair], images: Sequence[Sequence[Image]], step: int) -> dict[str, float]:
        """Learn from one batch.

        Args:
            pairs: of this process, at least one.
            images: of each pair, opened; the same objects are read once.
            step: from 0; decides the learning rate.

        Returns:
            Metrics of the whole group's pairs, the same in every process. ``dpo/told_apart`` is the share of pairs
            whose better one has the larger implicit reward. ``update/skipped`` is 1 where the step was left out because
            a gradient was not finite.
        """
        config = self._config
        scale = learning_rate_scale(
            step, schedule=config.schedule, warmup_steps=config.warmup_steps, total_steps=self._total_steps
        )
        self._optimiser.scale_rates(scale)
        rows = self._encode(pairs, images)
        count = self._group.sum(torch.tensor(float(len(pairs)), device=self._model.device))
        sums = torch.zeros(SUMS, dtype=torch.float64, device=self._model.device)
        for part, counts in self._parts(pairs):
            found = preference_loss(*self._log_ratios(rows, part, len(pairs)), config.beta, count)
            # What is computed for other processes' sake has no effect, but its passes must be made.
            (found.loss if counts else 0.0 * found.loss).backward()
            if counts:
                sums += summed(found)
        norms = self._optimiser.step((POLICY,))
        return batch_metrics(self._group.sum(sums).cpu()) | {
            "update/policy_gradient_norm": math.nan if norms is None else norms[POLICY],
            "update/skipped": float(norms is None),
            "update/learning_rate_scale": scale,
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The optimiser's tensors by parameter name."""
        return self._optimiser.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a ``state_dict``."""
        self._optimiser.load_state_dict(state)

    def _encode(self, pairs: Sequence[EncodedPair], images: Sequence[Sequence[Image]]) -> EncodedRows:
        """Chosen rows, then rejected ones, ``[2 * pairs]``."""
        contexts = [pair.context for pair in pairs]
        continuations = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
        return self._model.encode([pair.prompt for pair in pairs] * 2, [*images] * 2, continuations, contexts * 2)

    def _parts(self, pairs: Sequence[EncodedPair]) -> list[tuple[Tensor, bool]]:
        """Places of the pairs of each pass, of similar length, and whether they count."""
        order = torch.tensor(sorted(range(len(pairs)), key=lambda place: len(pairs[place])))
        own = list(torch.split(order, self._config.micro_batch_size))
        missing = self._model.passes_of_all(len(own)) - len(own)
        return [(part, True) for part in own] + [(order[:1], False)] * missing

    def _log_ratios(self, rows: EncodedRows, part: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
        """Of the chosen and of the rejected continuations, ``[part]`` each."""
        both = rows.select(torch.cat([part, part + pairs]).to(self._model.device))
        with torch.no_grad():
            reference = self._model.log_probs(both, "reference").log_probs
        policy = self._model.log_probs(both).log_probs
        ratios = log_ratio(policy, reference, both.response_lengths, normalise=self._config.length_normalisation)
        chosen, rejected = ratios.split(len(part))
        return chosen, rejected
