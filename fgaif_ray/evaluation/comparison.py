"""The evaluation of a run: what both policies are asked, and what their answers measure."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Final

from fgaif_ray.config import Config
from fgaif_ray.evaluation import AFTER, BEFORE, GREEDY, POLICIES, POPE, SAMPLED
from fgaif_ray.evaluation.hallucination import (
    Description,
    count_descriptions,
    count_lengths,
    measure_changes,
    measure_counts,
)
from fgaif_ray.evaluation.pope import STRATEGIES, PopeQuestion, build_questions, score_splits
from fgaif_ray.evaluation.pope_changes import compare_splits
from fgaif_ray.evaluation.rows import EvaluationAnswer, EvaluationQuestion
from fgaif_ray.records import fingerprint, image_fields, images_key
from fgaif_ray.shapes.scenes import Scene
from fgaif_ray.sources import Images, ImageSets
from fgaif_ray.statistics.changes import CountedRows
from fgaif_ray.statistics.intervals import CONFIDENCE

METRICS_FILE: Final = "metrics.json"
POPE_MAX_TOKENS: Final = 8
"""The official rule reads no further than the first full stop."""
NO_TRUTH_NOTE: Final = (
    "The truth of these images is not known: only responses and their lengths are here, no rates and no POPE figures."
)

Truth = dict[str, Scene]


def pope_splits(config: Config, images: Sequence[Images], truth: Truth) -> dict[str, list[PopeQuestion]]:
    """POPE's questions about the images, each of which stands alone, by how the absent objects are chosen."""
    objects = {image: [item.shape for item in truth[image].objects] for (image,) in images}
    count = config.evaluate.pope_questions_per_image // 2 * 2
    return {
        strategy: build_questions(objects, strategy, questions_per_image=count, seed=config.run.seed)
        for strategy in STRATEGIES
    }


def questions_of(config: Config, sets: ImageSets, splits: dict[str, list[PopeQuestion]]) -> list[EvaluationQuestion]:
    """The questions to both policies, before the aligned one's first; a question of several splits is asked once."""
    return [question for which in POLICIES for question in _questions_to(which, config, sets, splits)]


def _questions_to(
    which: str, config: Config, sets: ImageSets, splits: dict[str, list[PopeQuestion]]
) -> Iterator[EvaluationQuestion]:
    asked: list[tuple[str, Images, str, float, int]] = []  # task, images, prompt, temperature, max_tokens
    for task, temperature in ((SAMPLED, 1.0), (GREEDY, 0.0)):
        for images, prompt in sets.questions(sets.evaluate, config.data.prompts):
            asked.append((task, images, prompt, temperature, config.evaluate.max_tokens))
    about = dict.fromkeys((question.image, question.text) for split in splits.values() for question in split)
    asked += [(POPE, (image,), text, 0.0, POPE_MAX_TOKENS) for image, text in about]
    for index, (task, images, prompt, temperature, max_tokens) in enumerate(asked):
        yield EvaluationQuestion(
            id=fingerprint(which, task, images_key(images), prompt),
            which=which,
            task=task,
            **image_fields(images),
            prompt=prompt,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=int(fingerprint(config.run.seed, task, index)[:8], 16),
        )


def measure(
    config: Config, answers: Sequence[EvaluationAnswer], truth: Truth | None, splits: dict[str, list[PopeQuestion]]
) -> dict[str, Any]:
    """What the answers of both policies say, JSON-serialisable.

    Args:
        config: the configuration.
        answers: of both policies.
        truth: scene by image, or None where it is not known.
        splits: what ``pope_splits`` returned; empty without truth.

    Returns:
        The metrics of both policies, and under ``changes`` what alignment changed, with paired intervals: ``sampled``,
        ``greedy`` and, with the truth, ``pope``.
    """
    groups: dict[tuple[str, str], list[EvaluationAnswer]] = defaultdict(list)
    for answer in answers:
        groups[answer.question.which, answer.question.task].append(answer)
    images = {answer.question.images for answer in answers}
    metrics: dict[str, Any] = {"images": len(images), "confidence": CONFIDENCE}
    if truth is None:
        metrics["note"] = NO_TRUTH_NOTE
    counts = {place: _count(groups[place], truth) for place in product(POLICIES, (SAMPLED, GREEDY))}
    said = {
        which: {(one.question.image, one.question.prompt): one.text for one in groups[which, POPE]}
        for which in POLICIES
    }
    for which in POLICIES:
        figures = measure_counts(counts[which, SAMPLED], config.run.seed)
        figures[GREEDY] = measure_counts(counts[which, GREEDY], config.run.seed)
        if splits:
            figures[POPE] = score_splits(splits, said[which])
        metrics[which] = figures
    metrics["changes"] = {
        task: measure_changes(counts[BEFORE, task], counts[AFTER, task], config.run.seed) for task in (SAMPLED, GREEDY)
    }
    if splits:
        metrics["changes"][POPE] = compare_splits(splits, said[BEFORE], said[AFTER], config.run.seed)
    return metrics


def _count(answers: Sequence[EvaluationAnswer], truth: Truth | None) -> CountedRows:
    finished = [answer.finish_reason == "stop" for answer in answers]
    if truth is None:
        shown = ["\n".join(answer.question.images) for answer in answers]
        return count_lengths([answer.text for answer in answers], shown, finished)
    images = [answer.question.image for answer in answers]
    return count_descriptions(
        [
            Description(image, truth[image], answer.text, done)
            for image, answer, done in zip(images, answers, finished, strict=True)
        ]
    )
