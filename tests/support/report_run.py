"""A small synthetic run for tests of the report: real stages, real measurements, no model but a noisy oracle."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgaif_ray import storage
from fgaif_ray.config import ReportConfig, RewardComposition
from fgaif_ray.evaluation.hallucination import Description, count_descriptions, measure_changes, measure_counts
from fgaif_ray.evaluation.pope import STRATEGIES, build_questions, score_splits
from fgaif_ray.evaluation.pope_changes import compare_splits
from fgaif_ray.evaluation.rows import ANSWERS_SCHEMA, EvaluationAnswer, EvaluationQuestion
from fgaif_ray.records import CLASS_NAMES, FACT_TYPES
from fgaif_ray.report.examples import choose_examples
from fgaif_ray.rewards.encoding import ScoringItem
from fgaif_ray.rewards.judged import Judged
from fgaif_ray.rewards.metrics import held_out_figures, scale_probabilities
from fgaif_ray.shapes.captions import CAPTION_PROMPTS, NO_ERRORS, POLICY_ERRORS, write_caption
from fgaif_ray.shapes.oracle import label_claims, read_claims
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import Scene, draw_scene
from fgaif_ray.statistics.agreement import agreement

HOSTILE = '</p><script>alert(1)</script><img src="https://example.org/x.png" onerror=alert(2)>'


class NoisyTruth:
    """A scorer that knows the truth of the scenes by their prompt's number, and is often unsure."""

    def __init__(self, scenes: Mapping[bytes, Scene]) -> None:
        self._scenes = scenes
        self._generator = np.random.default_rng(0)

    def encode(self, item: ScoringItem) -> Any:
        return item

    def judge_encoded(self, fact_types: Sequence[str], items: Sequence[Any]) -> Judged:
        scores: dict[str, list[NDArray[np.float32]]] = {kind: [] for kind in fact_types}
        for item in items:
            text, spans = "", []
            for segment in item.segments:
                spans.append((len(text), len(text) + len(segment)))
                text += segment
            (image,) = item.images
            labels = [label_claims(self._scenes[image.tobytes()], claims) for claims in read_claims(text, spans)]
            for kind in fact_types:
                logits = self._generator.normal(0, 1.2, (len(labels), len(CLASS_NAMES)))
                for row, found in enumerate(labels):
                    logits[row, found[kind]] += 4
                shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
                scores[kind].append(shares.astype(np.float32))
        return Judged(scores, {})


def publish(
    run_dir: Path, name: str, files: Mapping[str, Any], answers: Sequence[EvaluationAnswer] = (), **details: Any
) -> None:
    stage = storage.Stage(str(run_dir), name, f"{name}-of-the-test")
    stage.begin()
    for path, value in files.items():
        data = value if isinstance(value, str) else json.dumps(value)
        storage.write_bytes(storage.join(stage.partial, path), data.encode())
    if answers:
        storage.write_part(stage.partial, [answer.to_row() for answer in answers], ANSWERS_SCHEMA)
    stage.publish(details)


def agreement_figures(generator: random.Random, quality: float) -> dict[str, Any]:
    truth = generator.choices(range(3), weights=(5, 4, 2), k=1500)
    predicted = [code if generator.random() < quality else generator.randrange(3) for code in truth]
    return agreement(truth, predicted).to_dict()


def reward_figures(seed: int) -> dict[str, Any]:
    """Held-out figures of a reward model that is twice too sure."""
    generator = np.random.default_rng(seed)
    true = generator.dirichlet([0.4, 0.4, 0.4], 300)
    labels = [int(generator.choice(3, p=row)) for row in true]
    return held_out_figures(scale_probabilities(true, 0.5), labels, [str(index // 6) for index in range(300)])


def training_line(step: int, generator: random.Random) -> dict[str, Any]:
    done = 1 - math.exp(-step / 18)
    noise = generator.gauss
    return {
        "step": step,
        **{f"reward/{kind}": 0.4 + i * 0.3 + 1.1 * done + noise(0, 0.08) for i, kind in enumerate(FACT_TYPES)},
        "reward/total": 2.1 + 3.3 * done + noise(0, 0.15),
        **{f"hallucination/{kind}": 0.35 - 0.26 * done + noise(0, 0.02) for kind in FACT_TYPES},
        "facts/per_response": 7.5 - 0.4 * done + noise(0, 0.2),
        "kl/per_response": 6 * done + noise(0, 0.4),
        "response/length": 46 - 3 * done + noise(0, 1),
        "response/stopped_share": 1.0,
        "policy/entropy": 1.1 - 0.5 * done + noise(0, 0.02),
        "policy/clip_share": 0.08 + noise(0, 0.01),
        "critic/clip_share": 0.03 + noise(0, 0.01),
        "critic/explained_variance_before": None if step == 0 else -3 * (1 - done) + 0.6 * done + noise(0, 0.05),
        "rollout/log_prob_difference": abs(noise(0, 0.002)),
        "timing/step": 6.2 + noise(0, 0.3),
        "timing/rollout": 2.1 + noise(0, 0.2),
        "timing/update": 2.9 + noise(0, 0.1),
        "timing/reward": 0.7 + noise(0, 0.05),
        "timing/reference": 0.8 + noise(0, 0.05),
        "timing/sync": 0.2,
        "count/responses": 128.0,
        "count/tokens": 5800.0,
    }


def answer_row(which: str, task: str, image: str, prompt: str, response: str) -> EvaluationAnswer:
    question = EvaluationQuestion(
        id=f"{which}/{task}/{image}/{prompt}",
        which=which,
        task=task,
        image=image,
        prompt=prompt,
        temperature=1.0,
        max_tokens=64,
        seed=0,
    )
    return EvaluationAnswer(question=question, text=response, tokens=len(response.split()), finish_reason="stop")


def evaluate_captions(
    run_dir: Path, images: int, before: str | None
) -> tuple[list[EvaluationAnswer], dict[str, Scene], Any]:
    """Rows, truth and metrics of captions with many errors before and few after."""
    generator = random.Random(1)
    truth: dict[str, Scene] = {}
    rows = []
    for index in range(images):
        scene = draw_scene("heldout", index)
        path = run_dir / "images" / f"heldout-{index:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        render(scene).save(path)
        truth[str(path)] = scene
        prompt = CAPTION_PROMPTS[index % 4]
        for task in ("sampled", "greedy"):
            wrong = before or write_caption(scene, POLICY_ERRORS, generator)
            fewer = write_caption(scene, POLICY_ERRORS if generator.random() < 0.2 else NO_ERRORS, generator)
            rows.append(answer_row("before", task, str(path), prompt, wrong))
            rows.append(answer_row("after", task, str(path), prompt, fewer))
    objects = {path: [item.shape for item in scene.objects] for path, scene in truth.items()}
    splits = {str(strategy): build_questions(objects, strategy) for strategy in STRATEGIES}
    metrics: dict[str, Any] = {"images": images, "confidence": 0.95, "seconds": 41.0}
    counts, said = {}, {}
    for which, accuracy in (("before", 0.8), ("after", 0.86)):
        for task in ("greedy", "sampled"):
            found = [
                Description(row.question.image, truth[row.question.image], row.text, True)
                for row in rows
                if (row.question.which, row.question.task) == (which, task)
            ]
            counts[which, task] = count_descriptions(found)
            figures = measure_counts(counts[which, task])
            metrics[which] = figures | metrics.get(which, {}) if task == "sampled" else {"greedy": figures}
        said[which] = {
            (q.image, q.text): "Yes" if q.label == (generator.random() < accuracy) else "No"
            for split in splits.values()
            for q in split
        }
        metrics[which]["pope"] = score_splits(splits, said[which])
    metrics["changes"] = {
        task: measure_changes(counts["before", task], counts["after", task]) for task in ("sampled", "greedy")
    }
    metrics["changes"]["pope"] = compare_splits(splits, said["before"], said["after"])
    return rows, truth, metrics


def write_run(run_dir: Path, images: int = 40, before: str | None = None) -> None:
    """A finished run in a folder, all but the report; ``before`` replaces what was said before."""
    generator = random.Random(2)
    rows, _, metrics = evaluate_captions(run_dir, images, before)
    publish(run_dir, "evaluation", {"metrics.json": metrics}, rows, rows=len(rows))
    labels = {
        "rows": 1000,
        "segments": 5200,
        "facts": {"existence": 3100, "attribute": 3600, "relation": 900},
        "agreement": {kind: agreement_figures(generator, 0.97) for kind in FACT_TYPES},
        "extraction": {"calls": 5200, "prompt_tokens": 312000, "completion_tokens": 121000},
        "seconds": 118.2,
    }
    publish(run_dir, "feedback", {"metrics.json": labels})
    publish(
        run_dir,
        "rewards",
        {
            f"{kind}/metrics.json": reward_figures(seed) | {"curve": [{}] * 5, "seconds": 31.0}
            for seed, kind in enumerate(FACT_TYPES)
        },
    )
    lines = [json.dumps(training_line(step, generator)) for step in range(1, 61)]
    publish(run_dir, "policy", {"metrics.jsonl": "\n".join(lines) + "\n"})
    publish(run_dir, "responses", {}, rows=1000, seconds=38.0)
    storage.write_json(
        f"{run_dir}/timing.json",
        {"images": 6.1, "sample": 38.4, "label": 118.2, "train_rewards": 95.0, "align": 402.7, "evaluate": 71.3},
    )


def write_examples(
    run_dir: Path, title: str = "A run", count: int = 12, images: int = 40, extremes: int = 3, known: bool = True
) -> None:
    """The report's own stage, scored by ``NoisyTruth``; ``known`` says whether the truth judges too."""
    truth = {str(run_dir / "images" / f"heldout-{i:06d}.png"): draw_scene("heldout", i) for i in range(images)}
    scorer = NoisyTruth({render(scene).tobytes(): scene for scene in truth.values()})
    options = ReportConfig(examples=count, extremes=extremes)
    rows = map(EvaluationAnswer.from_row, storage.read_rows(f"{run_dir}/evaluation"))
    judged = choose_examples(rows, truth if known else None, scorer, RewardComposition(), options, 0)
    shown = {
        "title": title,
        "policy": title if "<" in title else "checkpoints/policy",
        "steps": 60,
        "verdicts_by_truth": known,
        "temperature_scaling": False,
        "config": f"run:\n  dir: {run_dir}\n  note: {title}\n",
    }
    publish(run_dir, "report", {"examples.json": [example.to_json() for example in judged], "settings.json": shown})
