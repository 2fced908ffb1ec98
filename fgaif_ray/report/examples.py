"""Examples of a report: what the policy said of an image before and after, with verdicts and rewards per sub-sentence.

They are drawn, not picked. Images travel as data URLs, so that the report needs nothing but itself.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import torch

from fgaif_ray.config import RewardComposition
from fgaif_ray.errors import ItemError
from fgaif_ray.evaluation import POLICIES, SAMPLED
from fgaif_ray.evaluation.hallucination import judge_segments
from fgaif_ray.images import SMALLEST_PHOTO, encode_image, load_image, picture_url
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.rl.rewards import segment_rewards
from fgaif_ray.scoring import Scorer, TypeProbabilities, make_batch, score_batches
from fgaif_ray.segments import split_segments
from fgaif_ray.shapes.scenes import GRID, Scene

LARGEST_SIDE: Final = 480
"""Pixels; larger images are reduced."""


def draw_examples(rows: Iterable[Mapping[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    """Draw images and pair what was sampled about them before and after.

    Args:
        rows: the rows of ``evaluation/``.
        count: images to draw; all where there are fewer.
        seed: seed of the draw.

    Returns:
        ``{"image", "prompt", "before": {"response", "finish_reason"}, "after": {...}}`` in the order drawn.
    """
    said: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row["task"] == SAMPLED:
            answer = {"response": row["response"], "finish_reason": row["finish_reason"]}
            said.setdefault((row["image"], row["prompt"]), {})[row["which"]] = answer
    pairs = sorted(key for key, sides in said.items() if all(which in sides for which in POLICIES))
    drawn = random.Random(seed).sample(pairs, min(count, len(pairs)))
    return [{"image": image, "prompt": prompt, **said[image, prompt]} for image, prompt in drawn]


def judge_examples(
    examples: Sequence[Mapping[str, Any]],
    truth: Mapping[str, Scene] | None,
    model: Scorer,
    reward: RewardComposition,
) -> list[dict[str, Any]]:
    """Give each sub-sentence the truth's verdict and the reward models' probabilities and rewards.

    Args:
        examples: what ``draw_examples`` returned.
        truth: the scene behind each image, or None.
        model: the reward models of all fact types.
        reward: ``align.reward``: what the verdicts were worth in training.

    Returns:
        The examples, JSON-serialisable: ``picture`` (a data URL), ``name``, ``truth`` (objects in words, or None), and
        per side ``segments``: ``{start, end, labels, probabilities, rewards}``, the latter three by fact type; None
        where the truth is not known, or the reward models cannot read the response (longer than their context).

    Raises:
        UserError: an image cannot be read.
    """
    images = [load_image(example["image"]) for example in examples]
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
    (outcomes,) = score_batches(model, FACT_TYPES, [make_batch(items)])
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
    """Per sub-sentence the class probabilities and the weighted reward by fact type."""
    classes = torch.stack([torch.from_numpy(outcome[kind]) for kind in FACT_TYPES], dim=1)  # [segments, types, classes]
    earned = segment_rewards(classes, reward.weights, reward.value)  # [segments, types]
    return [
        (dict(zip(FACT_TYPES, triples, strict=True)), dict(zip(FACT_TYPES, rewards, strict=True)))
        for triples, rewards in zip(classes.tolist(), earned.tolist(), strict=True)
    ]


def describe_scene(scene: Scene) -> list[str]:
    """The objects of a scene in words, e.g. ``"large red circle, top left"``."""
    rows, columns = ("top", "middle", "bottom"), ("left", "center", "right")
    assert len(rows) == len(columns) == GRID
    return [f"{o.size} {o.color} {o.shape}, {rows[o.row]} {columns[o.column]}" for o in scene.objects]
