"""Examples of a report: the policy's answers about an image before and after, with verdicts and rewards per segment.

Some are drawn at random, so that they represent the whole. Beside them are those that alignment has improved most, and
the worst that are left. Images are embedded as data URLs, so that the report is one file.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fgaif_ray.blind import ShownImages
from fgaif_ray.config import ReportConfig, RewardComposition
from fgaif_ray.errors import ItemError
from fgaif_ray.evaluation import AFTER, BEFORE, POLICIES, SAMPLED
from fgaif_ray.evaluation.hallucination import judge_segments
from fgaif_ray.evaluation.rows import EvaluationAnswer
from fgaif_ray.images import SMALLEST_PHOTO, encode_image, load_images, picture_url, side_by_side
from fgaif_ray.pixel_budget import UNLIMITED, PixelBudget
from fgaif_ray.records import ABSENT, CONSISTENT, HALLUCINATED
from fgaif_ray.report.judged import DRAWN, IMPROVED, WORST, JudgedAnswer, JudgedExample, JudgedSegment
from fgaif_ray.rewards.composition import segment_rewards
from fgaif_ray.rewards.scoring import ItemVerdicts, Scorer, ScoringOutcome, make_batch, score_batches, stacked
from fgaif_ray.segments import ENGLISH, Span, split_segments
from fgaif_ray.shapes.scenes import GRID, Scene

LARGEST_SIDE: Final = 480
"""Pixels; larger images are reduced."""
POOL: Final = 48
"""Images among which the most improved and the worst are sought if only the reward models can judge them."""


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """What was sampled about the same images and prompt before and after alignment.

    Example: ``AnswerPair(("images/heldout-000007.png",), "Describe this image.", before, after)``
    """

    images: tuple[str, ...]
    """Paths or URIs."""
    prompt: str
    before: EvaluationAnswer
    after: EvaluationAnswer

    @property
    def image(self) -> str:
        """The only image, or the first."""
        return self.images[0]

    def of(self, which: str) -> EvaluationAnswer:
        """Return the answer of one policy, ``BEFORE`` or ``AFTER`` alignment."""
        return self.before if which == BEFORE else self.after


def choose_examples(
    answers: Iterable[EvaluationAnswer],
    truth: Mapping[str, Scene] | None,
    model: Scorer,
    reward: RewardComposition,
    options: ReportConfig,
    seed: int,
    budget: PixelBudget = UNLIMITED,
    shown: ShownImages = tuple,
    language: str = ENGLISH,
) -> list[JudgedExample]:
    """Choose and judge the examples of all groups.

    Verdicts are the truth's if it is known, over all images; else the reward models' over ``POOL`` images.

    Args:
        answers: the rows of ``evaluation/``.
        truth: the scene behind each image, or None.
        model: the reward models of all fact types.
        reward: ``align.reward``.
        options: how many of each group.
        seed: seed of the draw.
        budget: of the images.
        shown: see ``judge_examples``.
        language: of the answers, see ``split_segments``.

    Returns:
        ``options.examples`` that are drawn, then ``options.extremes`` each of the most improved and of the worst after
        alignment, none of them twice.

    Raises:
        UserError: an image cannot be read.
    """
    pairs = pair_answers(answers)
    drawn = _draw(pairs, options.examples, seed)
    taken = {(pair.images, pair.prompt) for pair in drawn}
    others = [pair for pair in pairs if (pair.images, pair.prompt) not in taken]
    if truth is not None:
        standings = [_standings(truth[pair.image], pair) for pair in others]
    else:
        others = _draw(others, POOL, seed)
        judged_others = judge_examples(others, None, model, reward, budget, shown, language)
        standings = [_counted(example) for example in judged_others]
    improved, worst = rank_examples(standings, options.extremes)
    if truth is not None:
        chosen = [*drawn, *(others[index] for index in (*improved, *worst))]
        judged = judge_examples(chosen, truth, model, reward, budget, shown, language)
    else:
        judged = judge_examples(drawn, None, model, reward, budget, shown, language)
        judged += [judged_others[index] for index in (*improved, *worst)]
    groups = [DRAWN] * len(drawn) + [IMPROVED] * len(improved) + [WORST] * len(worst)
    return [replace(example, group=group) for group, example in zip(groups, judged, strict=True)]


Standing = tuple[int, int]
"""Count the distinct segments of a response that are right, and those that are hallucinated; repetitions count once."""


def rank_examples(standings: Sequence[Mapping[str, Standing]], count: int) -> tuple[list[int], list[int]]:
    """Find the most improved examples and the worst after alignment, best and worst first, none in both.

    Improvement is the gain in right minus hallucinated segments; examples without a gain do not count. The worst have
    the most hallucinated segments after alignment; examples without any do not count.
    """

    def gain(index: int) -> int:
        before, after = standings[index][BEFORE], standings[index][AFTER]
        return (after[0] - after[1]) - (before[0] - before[1])

    def wrong(index: int) -> tuple[int, int]:
        right, hallucinated = standings[index][AFTER]
        return hallucinated, -right

    places = range(len(standings))
    worst = [index for index in sorted(places, key=wrong, reverse=True)[:count] if wrong(index)[0]]
    left = [index for index in places if index not in set(worst) and gain(index) > 0]
    return sorted(left, key=gain, reverse=True)[:count], worst


def _standings(scene: Scene, pair: AnswerPair) -> dict[str, Standing]:
    found = {}
    for which in POLICIES:
        text = pair.of(which).text
        found[which] = _standing((text[one.start : one.end], one.labels) for one in judge_segments(scene, text))
    return found


def _counted(example: JudgedExample) -> dict[str, Standing]:
    found = {}
    for which in POLICIES:
        answer = example.of(which)
        found[which] = _standing((answer.text[one.start : one.end], one.verdicts) for one in answer.segments)
    return found


def _standing(verdicts: Iterable[tuple[str, Mapping[str, int]]]) -> Standing:
    codes = {text.strip().lower(): max(labels.values(), default=ABSENT) for text, labels in verdicts}
    return sum(code == CONSISTENT for code in codes.values()), sum(code == HALLUCINATED for code in codes.values())


def pair_answers(answers: Iterable[EvaluationAnswer]) -> list[AnswerPair]:
    """Pair the answers sampled about the same images before and after, in the order of the images' names."""
    said: dict[tuple[tuple[str, ...], str], dict[str, EvaluationAnswer]] = {}
    for answer in answers:
        question = answer.question
        if question.task == SAMPLED:
            said.setdefault((question.images, question.prompt), {})[question.which] = answer
    complete = sorted(key for key, sides in said.items() if all(which in sides for which in POLICIES))
    return [AnswerPair(*key, said[key][BEFORE], said[key][AFTER]) for key in complete]


def _draw(pairs: Sequence[AnswerPair], count: int, seed: int) -> list[AnswerPair]:
    return random.Random(seed).sample(pairs, min(count, len(pairs)))


def judge_examples(
    pairs: Sequence[AnswerPair],
    truth: Mapping[str, Scene] | None,
    model: Scorer,
    reward: RewardComposition,
    budget: PixelBudget = UNLIMITED,
    shown: ShownImages = tuple,
    language: str = ENGLISH,
) -> list[JudgedExample]:
    """Give each segment the truth's verdict and the reward models' probabilities and rewards.

    Args:
        pairs: some of what ``pair_answers`` returned.
        truth: the scene behind each image, or None.
        model: the reward models of all fact types.
        reward: ``align.reward``: what the verdicts were worth in training.
        budget: of the images, which are shown as the models saw them.
        shown: what the reward models alone are shown in place of images (see ``fgaif_ray.blind``).
        language: of the answers, see ``split_segments``.

    Returns:
        The examples, as if all were drawn.

    Raises:
        UserError: an image cannot be read.
    """
    if not pairs:
        return []
    images = [load_images(pair.images, budget) for pair in pairs]
    places = [(index, which) for index in range(len(pairs)) for which in POLICIES]
    texts = {(index, which): pairs[index].of(which).text for index, which in places}
    spans = {place: split_segments(text, language) for place, text in texts.items()}
    paths = [shown(pair.images) for pair in pairs]
    seen = [
        some if path == pair.images else load_images(path, budget)
        for path, pair, some in zip(paths, pairs, images, strict=True)
    ]
    files = [tuple(encode_image(image, "PNG") for image in some) for some in seen]
    items = [
        (
            files[index],
            pairs[index].prompt,
            [texts[index, which][span.start : span.end] for span in spans[index, which]],
        )
        for index, which in places
    ]
    (outcomes,) = score_batches(model, tuple(reward.weights), [make_batch(items)])
    scenes = [None if truth is None else truth.get(pair.image) for pair in pairs]
    judged = {
        (index, which): _judge(pairs[index].of(which), spans[index, which], scenes[index], outcome, reward)
        for (index, which), outcome in zip(places, outcomes, strict=True)
    }
    return [
        JudgedExample(
            group=DRAWN,
            name=", ".join(path.rsplit("/", 1)[-1] for path in pair.images),
            picture=picture_url(picture, LARGEST_SIDE * len(pair.images)),
            enlarged=max(picture.size) < SMALLEST_PHOTO,
            prompt=pair.prompt,
            truth=None if scene is None else tuple(describe_scene(scene)),
            before=judged[index, BEFORE],
            after=judged[index, AFTER],
        )
        for index, (pair, picture, scene) in enumerate(zip(pairs, map(side_by_side, images), scenes, strict=True))
    ]


def _judge(
    answer: EvaluationAnswer,
    spans: Sequence[Span],
    scene: Scene | None,
    outcome: ScoringOutcome,
    reward: RewardComposition,
) -> JudgedAnswer:
    verdicts = None if scene is None else judge_segments(scene, answer.text)
    scores = None if isinstance(outcome, ItemError) else _scores(outcome, reward)
    segments = tuple(
        JudgedSegment(
            start=span.start,
            end=span.end,
            labels=None if verdicts is None else verdicts[row].labels,
            probabilities=None if scores is None else scores[row][0],
            rewards=None if scores is None else scores[row][1],
        )
        for row, span in enumerate(spans)
    )
    return JudgedAnswer(text=answer.text, finish_reason=answer.finish_reason, segments=segments)


def _scores(outcome: ItemVerdicts, reward: RewardComposition) -> list[tuple[dict[str, list[float]], dict[str, float]]]:
    """Return per segment the class probabilities and the weighted reward by fact type."""
    types = tuple(reward.weights)
    classes = stacked(outcome.probabilities, types)  # [segments, types, classes]
    facts = stacked(outcome.facts, types) if reward.unit == "fact" else None  # [segments, types, 2]
    earned = segment_rewards(classes, reward.weights, reward.value, facts, reward.false_cost)  # [segments, types]
    return [
        (dict(zip(types, triples, strict=True)), dict(zip(types, rewards, strict=True)))
        for triples, rewards in zip(classes.tolist(), earned.tolist(), strict=True)
    ]


def describe_scene(scene: Scene) -> list[str]:
    """Describe the objects of a scene in words, e.g. ``"large red circle, top left"``."""
    rows, columns = ("top", "middle", "bottom"), ("left", "center", "right")
    assert len(rows) == len(columns) == GRID
    return [f"{o.size} {o.color} {o.shape}, {rows[o.row]} {columns[o.column]}" for o in scene.objects]
