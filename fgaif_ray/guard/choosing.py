"""Choice of the best of several answers to one question."""

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, get_args

from fgaif_ray.guard.judgement import AnswerJudgement

ChoiceRule = Literal["reward", "mean_reward", "hallucination"]
"""Highest sum of the segments' rewards, highest mean of them, or lowest hallucination score."""

_WORTH: Final[dict[ChoiceRule, Callable[[AnswerJudgement], tuple[float, ...]]]] = {
    "reward": lambda judged: (judged.reward,),
    "mean_reward": lambda judged: (judged.mean_reward,),
    "hallucination": lambda judged: (-judged.hallucination, judged.reward),
}
assert set(_WORTH) == set(get_args(ChoiceRule))


def rank(judged: Sequence[AnswerJudgement], rule: ChoiceRule) -> list[int]:
    """Order answers from best to worst; equal ones keep their order.

    Answers about images that the reward models do not know keep theirs too: no verdict on them is worth a choice.

    Returns:
        Indices into ``judged``.
    """
    if not all(one.trusted for one in judged):
        return list(range(len(judged)))
    # An empty answer states nothing false; it is the best one only where there is no other.
    return sorted(range(len(judged)), key=lambda index: _key(judged[index], rule), reverse=False)


def _key(judged: AnswerJudgement, rule: ChoiceRule) -> tuple[Any, ...]:
    return (not judged.segments, *(-worth for worth in _WORTH[rule](judged)))
