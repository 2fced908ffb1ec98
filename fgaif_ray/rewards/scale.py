"""The running scale of rewards: each fact type in units of its own spread over the last steps of all learner processes.

Types differ in how often segments state a fact of theirs and in how sure their reward models are, so equal weights do
not pay them equally. Dividing each type's segment rewards by their deviation over the last steps makes a weight of 1
mean the same for each of them. Nothing is subtracted: a segment without a fact of the type still earns zero, a true one
more, a false one less. (VecNormalize of Stable-Baselines3 scales rewards this way, one scale for their sum; GDPO, as
TRL has it, each reward by itself, over a group.)

* ``running_std`` measures the deviation from the mean. Where a type is right nearly everywhere little deviation is
  left, and what a true segment earns grows while there is ever less to learn from it.
* ``running_rms`` measures it from zero, what a segment without a fact earns (root mean square). What a fact earns then
  hangs on how often there is one, not on how often it is right.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal

import torch
from torch import Tensor

from fgaif_ray.records import CLASS_NAMES, NOVELTY_TYPE
from fgaif_ray.rewards.composition import RewardOptions, reward_segments
from fgaif_ray.vlm.group import LearnerGroup

Verdicts = Sequence[Sequence[Sequence[float]]]
ScaleKind = Literal["running_std", "running_rms"]

LEAST_DEVIATION: Final = 0.2
"""In units of reward (1 for a segment that is certainly true). Smaller ones count as this: no type is paid more than
five times what its weight says, however rare it is, or however alike its rewards are."""


def moments(verdicts: Iterable[Verdicts], options: RewardOptions, facts: Iterable[Verdicts] = ()) -> Tensor:
    """Return count, sum and sum of squares of the segments' rewards by type, before weights, ``[types, 3]`` float64.

    Args:
        verdicts: ``[segments, types, classes]`` probabilities of each response whose reward is available.
        options: how they become rewards; of its weights only that of novelty matters.
        facts: ``[segments, types, 2]`` of the same responses, where facts are paid.
    """
    before = {name: weight if name == NOVELTY_TYPE else 1.0 for name, weight in options.weights.items()}
    probabilities = _joined(verdicts, len(before), len(CLASS_NAMES))  # [segments, types, classes]
    counts = _joined(facts, len(before), 2)  # [segments, types, 2]
    rewards = reward_segments(probabilities, replace(options, weights=before), counts)  # [segments, types]
    count = torch.full((len(before),), float(len(rewards)), dtype=torch.float64)
    return torch.stack([count, rewards.sum(0), rewards.square().sum(0)], dim=1)


def _joined(responses: Iterable[Verdicts], types: int, numbers: int) -> Tensor:
    segments = [segment for response in responses for segment in response]
    return torch.tensor(segments, dtype=torch.float64).reshape(len(segments), types, numbers)


class RunningScale:
    """The deviations of the types' rewards over the last steps, the present one included.

    Example: with ``RunningScale("running_rms", 10, ("existence", "relation"))``, where every segment states that
    something exists and one in four a relation, all of them true, factors are 1 and 2.
    """

    def __init__(self, kind: ScaleKind, steps: int, types: Sequence[str]) -> None:
        """Start without a step.

        Args:
            kind: see the module.
            steps: how many of the last steps count, at least 1.
            types: the fact types, in the order of arrays.
        """
        self._kind, self._types = kind, tuple(types)
        self._steps: deque[list[list[float]]] = deque(maxlen=steps)

    def add(self, own: Tensor, group: LearnerGroup) -> None:
        """Take the ``moments`` of a step from each learner process, so that all of them scale alike.

        Args:
            own: of this process.
            group: all processes, each of which calls this.
        """
        self._steps.append(group.gather(own).sum(0).tolist())

    def factors(self) -> dict[str, float]:
        """Return what the rewards of each type are multiplied with; 1 before any segment, and for novelty."""
        total = torch.tensor(list(self._steps), dtype=torch.float64).sum(0) if self._steps else None  # [types, 3]
        found = dict.fromkeys(self._types, 1.0)
        if total is None or not total[0, 0] > 0:
            return found
        count, sums, squares = total.unbind(dim=1)  # [types] each
        centre = sums / count if self._kind == "running_std" else torch.zeros_like(sums)
        deviations = (squares / count - centre.square()).clamp(min=LEAST_DEVIATION**2).sqrt()
        found |= zip(self._types, (1.0 / deviations).tolist(), strict=True)
        if NOVELTY_TYPE in found:  # it pays nothing; its weight says how far it takes away what others pay
            found[NOVELTY_TYPE] = 1.0
        return found

    def weights(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Return weights that pay in units of each type's deviation."""
        factors = self.factors()
        return {name: weight * factors[name] for name, weight in weights.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the JSON-serialisable state that a resumed run needs."""
        return {"steps": list(self._steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a ``state_dict``."""
        self._steps.clear()
        self._steps.extend(state["steps"])
