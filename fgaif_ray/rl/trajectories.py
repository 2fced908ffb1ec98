"""Sampled responses with their rewards, and the padded batches that PPO learns from.

A reward that is unavailable is None in a `Trajectory` and never a zero: `collate` keeps its row out of every loss.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from fgaif_ray.records import ABSENT, CLASS_NAMES, NOVELTY_TYPE, ImageRow
from fgaif_ray.rewards.composition import RewardOptions, compose_rewards


class RewardUnavailableError(RuntimeError):
    """Error of missing rewards that the failure policy does not allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory(ImageRow):
    """One sampled response. The token ids are those that were sampled, never a re-tokenised text.

    Example: three tokens " a red", " ball", "</s>" in one segment: `token_ids=(7, 8, 2)`,
    `segment_spans=((0, 11),)`, `token_ends=(1,)`,
    `class_probabilities=(((0.1, 0.8, 0.1), (0.0, 0.1, 0.9), (1.0, 0.0, 0.0)),)`.

    Raises:
        ValueError: there is no token, the fields differ in length, or a number is not finite.
    """

    sample_id: str
    prompt: str
    token_ids: tuple[int, ...]
    """`[response_tokens]`, the end-of-sequence token included where it was sampled."""
    behaviour_log_probs: tuple[float, ...]
    """`[response_tokens]` as the sampling engine reported them."""
    finish_reason: str
    policy_version: int
    """Number of the adapter version that sampled the response."""
    response: str
    segment_spans: tuple[tuple[int, int], ...]
    """`[segments]` start and end character in `response` of each segment."""
    token_ends: tuple[int, ...]
    """`[segments]` index in `token_ids` of each segment's last token."""
    class_probabilities: tuple[tuple[tuple[float, ...], ...], ...] | None = None
    """`[segments, types, classes]`; None where the reward is unavailable."""
    fact_counts: tuple[tuple[tuple[float, ...], ...], ...] | None = None
    """`[segments, types, 2]` expected facts, and false ones where one is; None where they are not counted."""
    per_type_rewards: tuple[tuple[float, ...], ...] | None = None
    """`[segments, types]` weighted; None until rewarded."""
    token_rewards: tuple[float, ...] | None = None
    """`[response_tokens]` before the KL penalty; None until rewarded."""
    reward_failure: str | None = None
    """The reason why the reward is unavailable."""

    def __post_init__(self) -> None:
        tokens, segments = len(self.token_ids), len(self.segment_spans)
        if tokens == 0:
            raise ValueError(f"trajectory {self.sample_id} has no token")
        lengths = [
            ("behaviour_log_probs", self.behaviour_log_probs, tokens),
            ("token_ends", self.token_ends, segments),
            ("class_probabilities", self.class_probabilities, segments),
            ("fact_counts", self.fact_counts, segments),
            ("per_type_rewards", self.per_type_rewards, segments),
            ("token_rewards", self.token_rewards, tokens),
        ]
        for name, numbers, length in lengths:
            if numbers is not None and len(numbers) != length:
                raise ValueError(f"trajectory {self.sample_id}: {name} has {len(numbers)} entries, expected {length}")
        if not all(map(math.isfinite, (*self.behaviour_log_probs, *(self.token_rewards or ())))):
            raise ValueError(f"trajectory {self.sample_id}: log-probs and rewards must be finite")

    @property
    def rewarded(self) -> bool:
        """Whether the reward is available."""
        return self.token_rewards is not None


def reward_trajectory(
    trajectory: Trajectory,
    probabilities: Sequence[Sequence[Sequence[float]]],
    options: RewardOptions,
    facts: Sequence[Sequence[Sequence[float]]] | None = None,
) -> Trajectory:
    """Return the trajectory with its verdicts and the rewards made of them.

    Args:
        trajectory: without rewards.
        probabilities: `[segments, types, classes]`.
        options: how rewards are made.
        facts: `[segments, types, 2]`, see `fgaif_ray.rewards.fact_counts`; None where they are not counted.

    Raises:
        ValueError: the probabilities do not fit the trajectory's segments or are not finite, or facts are paid and not
            counted.
    """
    # A response without segments would lose its last two dimensions on the way through lists.
    shape = (len(probabilities), len(options.types), len(CLASS_NAMES))
    tensor = torch.tensor(probabilities, dtype=torch.float64) if probabilities else torch.zeros(shape)
    composed = compose_rewards(
        tensor,  # [segments, types, classes]
        torch.tensor(trajectory.token_ends, dtype=torch.int64),  # [segments]
        len(trajectory.token_ids),
        trajectory.finish_reason,
        options,
        None if facts is None else torch.tensor(facts, dtype=torch.float64).reshape(*shape[:2], 2),
    )
    return replace(
        trajectory,
        class_probabilities=tuple(tuple(map(tuple, types)) for types in probabilities),
        fact_counts=None if facts is None else tuple(tuple(map(tuple, types)) for types in facts),
        per_type_rewards=tuple(map(tuple, composed.per_type.tolist())),
        token_rewards=tuple(composed.per_token.tolist()),
        reward_failure=None,
    )


def facts_per_response(trajectories: Sequence[Trajectory], types: Sequence[str]) -> float:
    """Return the mean number of segment and type pairs that hold a fact (most probable class not absent), by the
    reward models, or of facts in them where these are counted.

    It stands for coverage while training: a policy that says less loses facts. Novelty is not a fact. Over rewarded
    trajectories; NaN where there are none.

    Args:
        trajectories: of a step.
        types: the fact types, in the order of arrays.
    """
    facts = [place for place, name in enumerate(types) if name != NOVELTY_TYPE]
    counts = [
        sum(
            1.0 if one.fact_counts is None else one.fact_counts[row][place][0]
            for row, verdicts in enumerate(one.class_probabilities)
            for place in facts
            if max(range(len(CLASS_NAMES)), key=verdicts[place].__getitem__) != ABSENT
        )
        for one in trajectories
        if one.class_probabilities is not None
    ]
    return sum(counts) / len(counts) if counts else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryBatch:
    """Right-padded responses on one device."""

    trajectories: tuple[Trajectory, ...]
    """`[batch]` with what is not a tensor: images, prompts, texts."""
    response_ids: Tensor
    """`[batch, response_tokens]` int64."""
    response_mask: Tensor
    """`[batch, response_tokens]` bool, true on real tokens, also those of samples without reward."""
    behaviour_log_probs: Tensor
    """`[batch, response_tokens]` float32, zero on padding."""
    token_rewards: Tensor
    """`[batch, response_tokens]` float32, zero on padding; without meaning where `sample_mask` is false."""
    sample_mask: Tensor
    """`[batch]` bool, false where the reward is unavailable, or the response is not to be learnt from."""
    policy_versions: Tensor
    """`[batch]` int64."""

    def __len__(self) -> int:
        return len(self.trajectories)

    @property
    def loss_mask(self) -> Tensor:
        """`[batch, response_tokens]` bool: the tokens to learn from and to take statistics over."""
        return self.response_mask & self.sample_mask[:, None]

    def without_truncated(self) -> "TrajectoryBatch":
        """Return the same batch, with responses that were cut before they ended kept out of all that is learnt."""
        ended = torch.tensor([one.finish_reason == "stop" for one in self.trajectories])  # [batch]
        return replace(self, sample_mask=self.sample_mask & ended.to(self.sample_mask.device))

    def select(self, indices: Tensor) -> "TrajectoryBatch":
        """Select rows, in the given order, at the same padded length (other `[batch, ...]` tensors stay
        aligned).

        Args:
            indices: `[rows]` int64.

        Raises:
            ValueError: the indices are not int64.
        """
        if indices.dtype != torch.int64:
            raise ValueError(f"indices must be int64, not {indices.dtype}")
        rows = indices.to(self.response_ids.device)  # [rows]
        return self._mapped(lambda tensor: tensor[rows], tuple(self.trajectories[row] for row in indices.tolist()))

    def minibatches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, "TrajectoryBatch"]]:
        """Yield one pass over the batch in random order: the row indices (int64, CPU) and those rows.

        Args:
            size: rows per minibatch; the last one may hold fewer.
            generator: a CPU generator; its state is all that decides the order.

        Raises:
            ValueError: size is less than 1.
        """
        if size < 1:
            raise ValueError(f"a minibatch needs at least one row, not {size}")
        for indices in torch.split(torch.randperm(len(self), generator=generator), size):
            if len(indices):  # an empty batch splits into one empty part
                yield indices, self.select(indices)

    def to(self, device: torch.device | str) -> "TrajectoryBatch":
        """Return the same batch with its tensors on another device."""
        return self._mapped(lambda tensor: tensor.to(device), self.trajectories)

    def _mapped(self, change: Callable[[Tensor], Tensor], trajectories: tuple[Trajectory, ...]) -> "TrajectoryBatch":
        """Return these trajectories with every tensor changed."""
        names = (field.name for field in fields(self) if field.name != "trajectories")
        return TrajectoryBatch(trajectories=trajectories, **{name: change(getattr(self, name)) for name in names})


def collate(trajectories: Sequence[Trajectory], pad_token_id: int) -> TrajectoryBatch:
    """Pads responses to a batch; the row of one without reward is kept out of every loss and statistic.

    Args:
        trajectories: at least one.
        pad_token_id: fills `response_ids` after the last real token.

    Raises:
        ValueError: there are no trajectories.
    """
    if not trajectories:
        raise ValueError("there are no trajectories to collate")
    shape = (len(trajectories), max(len(trajectory.token_ids) for trajectory in trajectories))
    response_ids = torch.full(shape, pad_token_id, dtype=torch.int64)  # [batch, response_tokens]
    response_mask = torch.zeros(shape, dtype=torch.bool)  # [batch, response_tokens]
    behaviour_log_probs = torch.zeros(shape)  # [batch, response_tokens]
    rewards = torch.zeros(shape)  # [batch, response_tokens]
    for row, trajectory in enumerate(trajectories):
        length = len(trajectory.token_ids)
        response_ids[row, :length] = torch.tensor(trajectory.token_ids)
        response_mask[row, :length] = True
        behaviour_log_probs[row, :length] = torch.tensor(trajectory.behaviour_log_probs)
        if trajectory.token_rewards is not None:
            rewards[row, :length] = torch.tensor(trajectory.token_rewards)
    return TrajectoryBatch(
        trajectories=tuple(trajectories),
        response_ids=response_ids,
        response_mask=response_mask,
        behaviour_log_probs=behaviour_log_probs,
        token_rewards=rewards,
        sample_mask=torch.tensor([trajectory.rewarded for trajectory in trajectories]),  # [batch]
        policy_versions=torch.tensor([trajectory.policy_version for trajectory in trajectories]),  # [batch]
    )
