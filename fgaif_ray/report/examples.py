"""Examples of a report: the policy's answers about an image before and after, with verdicts and rewards per segment.

Some are drawn at random, so that they represent the whole. Beside them are those that alignment has improved most, and
the worst that are left. Images are embedded as data URLs, so that the report is one file.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch

from fgaif_ray.config import ReportConfig, RewardComposition
from fgaif_ray.errors import ItemError
from fgaif_ray.evaluation import AFTER, BEFORE, POLICIES, SAMPLED
from fgaif_ray.evaluation.hallucination import judge_segments
from fgaif_ray.images import SMALLEST_PHOTO, encode_image, load_image, picture_url
from fgaif_ray.pixel_budget import UNLIMITED, PixelBudget
from fgaif_ray.records import ABSENT, CONSISTENT, HALLUCINATED
from fgaif_ray.rewards.composition import segment_rewards
from fgaif_ray.rewards.scoring import Scorer, TypeProbabilities, make_batch, score_batches
from fgaif_ray.segments import split_segments
from fgaif_ray.shapes.scenes import GRID, Scene

LARGEST_SIDE: Final = 480
"""Pixels; larger images are reduced."""
DRAWN, IMPROVED, WORST = "drawn", "mended", "worst"
GROUPS: Final = (DRAWN, IMPROVED, WORST)
POOL: Final = 48
"""Images among which the most improved and the worst are sought if only the reward models can judge them."""


def choose_examples(
    rows: Iterable[Mapping[str, Any]],
    truth: Mapping[str, Scene] | None,
    model: Scorer,
    reward: RewardComposition,
    options: ReportConfig,
    seed: int,
    budget: PixelBudget = UNLIMITED,
) -> list[dict[str, Any]]:
    """Choose and judge the examples of all groups.

    Verdicts are the truth's if it is known, over all images; else the reward models' over ``POOL`` images.

    Args:
        rows: the rows of ``evaluation/``.
        truth: the scene behind each image, or None.
        model: the reward models of all fact types.
        reward: ``align.reward``.
        options: how many of each group.
        seed: seed of the draw.
        budget: of the images.

    Returns:
        What ``judge_examples`` returns, with ``group``: ``options.examples`` that are drawn, then ``options.extremes``
        each of the most improved and of the worst after alignment, none of them twice.

    Raises:
        UserError: an image cannot be read.
    """
    pairs = pair_responses(rows)
    drawn = _draw(pairs, options.examples, seed)
    taken = {(example["image"], example["prompt"]) for example in drawn}
    others = [example for example in pairs if (example["image"], example["prompt"]) not in taken]
    if truth is not None:
        standings = [_standings(truth[example["image"]], example) for example in others]
    else:
        others = _draw(others, POOL, seed)
        judged_others = judge_examples(others, None, model, reward, budget)
        standings = [_counted(example) for example in judged_others]
    improved, worst = rank_examples(standings, options.extremes)
    if truth is not None:
        chosen = [*drawn, *(others[index] for index in (*improved, *worst))]
        judged = judge_examples(chosen, truth, model, reward, budget)
    else:
        judged = judge_examples(drawn, None, model, reward, budget)
        judged += [judged_others[index] for index in (*improved, *worst)]
    groups = [DRAWN] * len(drawn) + [IMPROVED] * len(improved) + [WORST] * len(worst)
    return [{"group": group, **example} for group, example in zip(groups, judged, strict=True)]


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


def _standings(scene: Scene, example: Mapping[str, Any]) -> dict[str, Standing]:
    found = {}
    for which in POLICIES:
        response = example[which]["response"]
        verdicts = [(response[v.start : v.end], v.labels) for v in judge_segments(scene, response)]
        found[which] = _standing(verdicts)
    return found


def _counted(example: Mapping[str, Any]) -> dict[str, Standing]:
    found = {}
    for which in POLICIES:
        side = example[which]
        found[which] = _standing(
            [(side["response"][one["start"] : one["end"]], verdict_codes(one)) for one in side["segments"]]
        )
    return found


def _standing(verdicts: Iterable[tuple[str, Mapping[str, int]]]) -> Standing:
    codes = {text.strip().lower(): max(labels.values(), default=ABSENT) for text, labels in verdicts}
    return sum(code == CONSISTENT for code in codes.values()), sum(code == HALLUCINATED for code in codes.values())


def verdict_codes(segment: Mapping[str, Any]) -> dict[str, int]:
    """Return the verdict on a judged segment by fact type: the truth's where it is known, else the reward models'."""
    return (predicted_codes(segment) or {}) | (segment["labels"] or {})


def predicted_codes(segment: Mapping[str, Any]) -> dict[str, int] | None:
    """Return the reward models' most probable class by fact type; None if they have not scored the segment."""
    probabilities = segment["probabilities"]
    if probabilities is None:
        return None
    return {kind: max(range(len(shares)), key=shares.__getitem__) for kind, shares in probabilities.items()}


def pair_responses(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pair the responses sampled about each image before and after, in the order of the images' names.

    Returns:
        ``{"image", "prompt", "before": {"response", "finish_reason"}, "after": {...}}``.
    """
    said: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row["task"] == SAMPLED:
            answer = {"response": row["response"], "finish_reason": row["finish_reason"]}
            said.setdefault((row["image"], row["prompt"]), {})[row["which"]] = answer
    pairs = sorted(key for key, sides in said.items() if all(which in sides for which in POLICIES))
    return [{"image": image, "prompt": prompt, **said[image, prompt]} for image, prompt in pairs]


def _draw(pairs: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    return random.Random(seed).sample(pairs, min(count, len(pairs)))


def judge_examples(
    examples: Sequence[Mapping[str, Any]],
    truth: Mapping[str, Scene] | None,
    model: Scorer,
    reward: RewardComposition,
    budget: PixelBudget = UNLIMITED,
) -> list[dict[str, Any]]:
    """Give each segment the truth's verdict and the reward models' probabilities and rewards.

    Args:
        examples: some of what ``pair_responses`` returned.
        truth: the scene behind each image, or None.
        model: the reward models of all fact types.
        reward: ``align.reward``: what the verdicts were worth in training.
        budget: of the images, which are shown as the models saw them.

    Returns:
        The examples, JSON-serialisable: ``picture`` (a data URL), ``name``, ``truth`` (objects in words, or None), and
        per side ``segments``: ``{start, end, labels, probabilities, rewards}``, the latter three by fact type; None
        where the truth is not known, or the reward models cannot read the response (longer than their context).

    Raises:
        UserError: an image cannot be read.
    """
    if not examples:
        return []
    images = [load_image(example["image"], budget) for example in examples]
    places = [(index, which) for index in range(len(examples)) for which in POLICIES]
    spans = {place: split_segments(examples[place[0]][place[1]]["response"]) for place in places}
    files = [encode_image(image, "PNG") for image in images]
    items = [
        (
            files[index],
            examples[index]["prompt"],
            [examples[index][which]["response"][span.start : span.end] for span in spans[index, which]],
        )
        for index, which in places
    ]
    (outcomes,) = score_batches(model, tuple(reward.weights), [make_batch(items)])
    judged: list[dict[str, Any]] = []
    for example, image in zip(examples, images, strict=True):
        scene = truth.get(example["image"]) if truth is not None else None
        judged.append(
            {
                "name": example["image"].rsplit("/", 1)[-1],
                "picture": picture_url(image, LARGEST_SIDE),
                "enlarged": max(image.size) < SMALLEST_PHOTO,
                "prompt": example["prompt"],
                "truth": None if scene is None else describe_scene(scene),
            }
        )
    for (index, which), outcome in zip(places, outcomes, strict=True):
        example, segments = examples[index], spans[index, which]
        scene = truth.get(example["image"]) if truth is not None else None
        verdicts = None if scene is None else judge_segments(scene, example[which]["response"])
        scores = None if isinstance(outcome, ItemError) else _scores(outcome, reward)
        judged[index][which] = {
            "response": example[which]["response"],
            "finish_reason": example[which]["finish_reason"],
            "segments": [
                {
                    "start": span.start,
                    "end": span.end,
                    "labels": None if verdicts is None else verdicts[row].labels,
                    "probabilities": None if scores is None else scores[row][0],
                    "rewards": None if scores is None else scores[row][1],
                }
                for row, span in enumerate(segments)
            ],
        }
    return judged


def _scores(
    outcome: TypeProbabilities, reward: RewardComposition
) -> list[tuple[dict[str, list[float]], dict[str, float]]]:
    """Return per segment the class probabilities and the weighted reward by fact type."""
    types = tuple(reward.weights)
    classes = torch.stack([torch.from_numpy(outcome[kind]) for kind in types], dim=1)  # [segments, types, classes]
    earned = segment_rewards(classes, reward.weights, reward.value)  # [segments, types]
    return [
        (dict(zip(types, triples, strict=True)), dict(zip(types, rewards, strict=True)))
        for triples, rewards in zip(classes.tolist(), earned.tolist(), strict=True)
    ]


def describe_scene(scene: Scene) -> list[str]:
    """Describe the objects of a scene in words, e.g. ``"large red circle, top left"``."""
    rows, columns = ("top", "middle", "bottom"), ("left", "center", "right")
    assert len(rows) == len(columns) == GRID
    return [f"{o.size} {o.color} {o.shape}, {rows[o.row]} {columns[o.column]}" for o in scene.objects]
