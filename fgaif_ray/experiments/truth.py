"""Uses of the truth of the images in experiments: labels in place of people's, and the accuracy of reward models.

A reward model's own metrics are about the labels that it was trained on, noise and mistakes included. Here its
verdicts on what the policy said about the evaluation's images are compared with the truth: before alignment, on
responses like those it was trained on, and after it, on what PPO has found it to reward.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fgaif_ray.audit.human import ANSWERS_FORMAT, ANSWERS_VERSION
from fgaif_ray.blind import ShownImages
from fgaif_ray.evaluation import AFTER, BEFORE, SAMPLED
from fgaif_ray.evaluation.hallucination import judge_segments
from fgaif_ray.evaluation.rows import EvaluationAnswer
from fgaif_ray.pixel_budget import UNLIMITED, PixelBudget
from fgaif_ray.records import CLASS_NAMES, FACT_TYPES, Response
from fgaif_ray.rewards.kinds import COARSE, response_label
from fgaif_ray.shapes.scenes import Scene
from fgaif_ray.statistics.agreement import agreement

if TYPE_CHECKING:
    from fgaif_ray.rewards.model import RewardModel

BLOCK: Final = 64
"""Responses scored at once."""


def truth_answers(responses: Iterable[Response], truth: Mapping[str, Scene], audit: str) -> bytes:
    """Write the truth's labels of all segments in the form of an audit's answers (see ``feedback.human``), as JSON.

    Args:
        responses: rows of ``responses/``.
        truth: the scene behind each image; responses to other images get no answers.
        audit: identity of the answers.
    """
    answers = []
    for response in responses:
        if response.image not in truth:
            continue
        for index, verdict in enumerate(judge_segments(truth[response.image], response.text)):
            labels = {kind: CLASS_NAMES[code] for kind, code in verdict.labels.items()}
            text = response.text[verdict.start : verdict.end]
            answers.append(
                {"sample_id": response.sample_id, "segment": index, "text": text, "facts": [], "labels": labels}
            )
    content = {"format": ANSWERS_FORMAT, "version": ANSWERS_VERSION, "audit": audit, "annotator": "truth"}
    return json.dumps(content | {"answers": answers}, ensure_ascii=False).encode()


def reward_accuracy(
    answers: Iterable[EvaluationAnswer],
    truth: Mapping[str, Scene],
    model: "RewardModel",
    coarse: bool,
    types: Sequence[str],
    budget: PixelBudget = UNLIMITED,
    shown: ShownImages = tuple,
) -> dict[str, dict[str, Any]]:
    """Compare reward models with the truth on responses that they were not trained on.

    Args:
        answers: the rows of ``evaluation/``; the sampled ones are taken.
        truth: the scene behind each image.
        model: the reward models of all fact types.
        coarse: whether they give one verdict per response.
        types: fact types of the run; those that the truth does not know are left out.
        budget: of the images.
        shown: what the reward models are shown in place of images (see ``fgaif_ray.blind``).

    Returns:
        For the responses ``before`` alignment and those ``after`` it, metrics of ``Agreement.to_dict`` by fact type, or
        under ``coarse``. After it they are lower where the policy exploits the reward models.

    Raises:
        UserError: an image cannot be read.
    """
    judged = tuple(kind for kind in types if kind in FACT_TYPES)
    known = [one for one in answers if one.question.task == SAMPLED and one.question.image in truth]
    return {
        which: _accuracy(
            [one for one in known if one.question.which == which], truth, model, coarse, judged, budget, shown
        )
        for which in (BEFORE, AFTER)
    }


def _accuracy(
    answers: Sequence[EvaluationAnswer],
    truth: Mapping[str, Scene],
    model: "RewardModel",
    coarse: bool,
    types: Sequence[str],
    budget: PixelBudget,
    shown: ShownImages,
) -> dict[str, Any]:
    true_codes: dict[str, list[int]] = {kind: [] for kind in ((COARSE,) if coarse else types)}
    predicted: dict[str, list[int]] = {kind: [] for kind in true_codes}
    for start in range(0, len(answers), BLOCK):
        _score(answers[start : start + BLOCK], truth, model, true_codes, predicted, types, budget, shown)
    return {kind: agreement(codes, predicted[kind]).to_dict() for kind, codes in true_codes.items()}


def _score(
    answers: Sequence[EvaluationAnswer],
    truth: Mapping[str, Scene],
    model: "RewardModel",
    true_codes: dict[str, list[int]],
    predicted: dict[str, list[int]],
    types: Sequence[str],
    budget: PixelBudget,
    shown: ShownImages,
) -> None:
    """Add the verdicts on a block of responses."""
    from fgaif_ray.images import load_images
    from fgaif_ray.rewards.encoding import ScoringItem

    verdicts = [judge_segments(truth[answer.question.image], answer.text) for answer in answers]
    kept = [index for index, of_one in enumerate(verdicts) if of_one]
    items = [
        ScoringItem(
            load_images(shown(answers[index].question.images), budget),
            answers[index].question.prompt,
            [answers[index].text[verdict.start : verdict.end] for verdict in verdicts[index]],
        )
        for index in kept
    ]
    if COARSE in true_codes:
        (scores,) = model.score_types(types[:1], items).values()
        for index, of_response in zip(kept, scores, strict=True):
            labels = {kind: tuple(verdict.labels[kind] for verdict in verdicts[index]) for kind in types}
            true_codes[COARSE].append(response_label(labels))
            predicted[COARSE].append(int(np.argmax(of_response[-1])))
        return
    for kind, of_kind in model.score_types(types, items).items():
        for index, of_response in zip(kept, of_kind, strict=True):
            true_codes[kind] += [verdict.labels[kind] for verdict in verdicts[index]]
            predicted[kind] += of_response.argmax(axis=1).tolist()
