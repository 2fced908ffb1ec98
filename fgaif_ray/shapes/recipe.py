"""The order of the pre-training phases, their files on disk, and the model cards with measured metrics."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from fgaif_ray.progress import say
from fgaif_ray.shapes import packing, pretraining, tiny_llava, turns
from fgaif_ray.shapes.probes import measure_answers, measure_captions, measure_extraction, measure_marks
from fgaif_ray.shapes.scenes import draw_scene

CORPUS_SCENES: Final = 3000

_CARD = """---
license: apache-2.0
tags: [llava, embedded-world]
---
# Tiny LLaVA of the embedded world: {name}

A LLaVA (CLIP tower, two-layer projector, Llama; 1.9 million parameters, float32, 60 x 60 pixels) trained from nothing
by the phases of `python -m jobs.pretrain_shapes --seed {seed}`. {purpose}

Measured on {count} held-out scenes:

{figures}
"""
_PURPOSES = {
    "policy": (
        "It sees and describes correctly first and is then taught captions with planted errors: objects that usually "
        "come together, default colours, a favoured side, and random slips. Alignment starts from it."
    ),
    "annotator": (
        "It says whether a statement about the image is right, and judges the statements of a running text one by one."
    ),
    "extractor": "It splits segments into atomic facts (JSON); it is asked about text alone.",
}


def _corpus(seed: int) -> Iterator[str]:
    generator = random.Random(seed)
    for index in range(CORPUS_SCENES):
        scene = draw_scene("pretrain", index, seed)
        conversations = [
            turns.caption_turn(scene, turns.POSSIBLE_ERRORS, generator),
            *turns.question_turns(scene, 2, generator),
            *turns.extraction_turns(scene, 1, generator),
            *turns.name(scene, generator),
        ]
        for turn in conversations:
            yield f"USER: {turn.question}\nASSISTANT:\n"
            yield turn.answer


def _load(folder: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    return model, processor


def _move(model: torch.nn.Module, device: str) -> None:
    """Move a model to a device. The type that transformers gives ``to`` is narrower than what it takes."""
    model.to(torch.device(device))


def _done(folder: Path) -> bool:
    return (folder / "model.safetensors").exists()


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase that trains the language model."""

    start: str
    """The phase whose weights it starts from."""
    streams: tuple[tuple[turns.TurnMaker, int], ...]
    """Conversations, and images a step."""
    steps: int
    learning_rate: float
    heavy: tuple[str, ...] = packing.SEEN
    weight_decay: float = 0.01


TOWER_STEPS: Final = 1500
PROJECTOR_STEPS: Final = 2200
_EXTRACT, _EXTRACT_LESS = (turns.extract_only, 8), (turns.extract_only, 4)
_text = partial(Phase, heavy=packing.ANSWERS, weight_decay=0.1)
# Two lines part at the tower: one looks, the other copies from text as well. Copying has to be learnt along with
# looking, while the weights are held small: taught to a model that had only looked, it was not there after 1,600 steps.
# Where yes and no weigh more than the words of places, comparing two places is not learnt for thousands of steps.
PHASES: Final = {
    "name": Phase("tower", ((turns.name, 24),), 1000, 1e-2),
    "answer": Phase("name", ((turns.name, 4), (turns.answer, 12)), 1400, 1e-2),
    "describe": Phase("answer", ((turns.name, 3), (turns.describe, 12)), 1200, 6e-3),
    "describe_more": Phase("describe", ((turns.describe_more, 12),), 1400, 8e-3),
    "describe_most": Phase("describe_more", ((turns.describe_more, 12),), 700, 8e-3),
    "base": Phase("describe_most", ((turns.name, 3), (turns.describe, 12)), 2000, 8e-3),
    "errors": Phase("base", ((turns.describe_with_errors, 16),), 600, 2e-3),
    "errors_more": Phase("errors", ((turns.describe_with_errors, 16),), 600, 2e-3),
    "policy": Phase("errors_more", ((turns.describe_with_errors, 16),), 600, 2e-3),
    "verify": Phase("describe", ((turns.verify, 12),), 2000, 8e-3),
    "text_name": _text("tower", ((turns.name, 16), _EXTRACT), 1600, 1e-2),
    "text_name_more": _text("text_name", ((turns.name, 24), _EXTRACT_LESS), 500, 1e-2),
    "text_answer": _text("text_name_more", ((turns.name, 4), (turns.answer, 12), _EXTRACT_LESS), 1400, 1e-2),
    "text_describe": _text("text_answer", ((turns.name, 3), (turns.describe, 12), _EXTRACT_LESS), 1200, 6e-3),
    "text_extract": Phase("text_describe", ((turns.extract_only, 12),), 400, 4e-3, weight_decay=0.1),
    "extractor": Phase("text_extract", ((turns.extract_references, 12),), 500, 4e-3, weight_decay=0.1),
    "verify_more": Phase("verify", ((turns.verify_more, 12),), 2000, 5e-3),
    "annotator": Phase("verify_more", ((turns.proofread, 12),), 1200, 5e-3),
}


def _policy_figures(model: LlavaForConditionalGeneration, processor: LlavaProcessor, probes: int) -> dict[str, float]:
    return {
        **measure_captions(model, processor, probes, greedy=False),
        **measure_captions(model, processor, probes, greedy=True),
        **measure_answers(model, processor, probes),
    }


def _annotator_figures(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, probes: int
) -> dict[str, float]:
    return {**measure_answers(model, processor, probes), **measure_marks(model, processor, probes)}


_Measure = Callable[[LlavaForConditionalGeneration, LlavaProcessor, int], dict[str, float]]
_FIGURES: Final[dict[str, _Measure]] = {
    "policy": _policy_figures,
    "annotator": _annotator_figures,
    "extractor": measure_extraction,
}


def _write_card(name: str, figures: dict[str, float], seed: int, count: int, folder: Path) -> None:
    lines = [f"* {key}: {value:.3f}" for key, value in figures.items()]
    for line in lines:
        say(f"{name} {line}")
    text = _CARD.format(name=name, seed=seed, purpose=_PURPOSES[name], count=count, figures="\n".join(lines))
    (folder / "README.md").write_text(text)


def train_tower(
    work: Path, pool: pretraining.ScenePool, seed: int, device: str, workers: int, steps: int | None
) -> None:
    """Tokenizer, vision tower and projector, from nothing into ``work / "tower"``."""
    tokenizer = tiny_llava.train_tokenizer(_corpus(seed))
    processor, model = tiny_llava.build_processor(tokenizer), tiny_llava.build_model(tokenizer, seed)
    _move(model, device)
    packer = packing.Packer(processor)
    share = pretraining.train_tower(model, packer, pool, steps or TOWER_STEPS, seed, workers=workers)
    say(f"tower: {share:.3f} of the occupied cells told right")
    pretraining.rescale_tower(model, packer, pool, seed)
    share = pretraining.align_projector(model, packer, pool, steps or PROJECTOR_STEPS, seed + 1, workers=workers)
    say(f"projector: {share:.3f} of the occupied cells read right")
    tiny_llava.save_checkpoint(model, processor, work / "tower")


def train_phase(
    name: str, work: Path, pool: pretraining.ScenePool, seed: int, device: str, workers: int, steps: int | None
) -> None:
    """One phase of the language model, from the folder of its start in ``work`` into its own."""
    phase = PHASES[name]
    model, processor = _load(work / phase.start)
    _move(model, device)
    count = steps or phase.steps
    streams = [
        pretraining.batches(
            pool,
            packing.Packer(processor, make_turns not in turns.TEXT_ONLY, phase.heavy),
            make_turns,
            batch_size,
            seed + 10 * list(PHASES).index(name) + position,
            count,
            workers,
        )
        for position, (make_turns, batch_size) in enumerate(phase.streams)
    ]
    loss = pretraining.train_language(
        f"pre-train {name}", model, streams, count, phase.learning_rate, phase.weight_decay
    )
    say(f"{name}: loss {loss:.4f}")
    tiny_llava.save_checkpoint(model, processor, work / name)


def run_phases(
    work: Path,
    output: Path,
    scenes: int,
    seed: int,
    probes: int,
    steps: int | None = None,
    device: str = "cpu",
    workers: int = 0,
) -> None:
    """Train what is missing: a folder of ``work`` for each phase, and of ``output`` for each model.

    Args:
        work: folder of the phases in between; what is there is not trained again.
        output: folder of the three checkpoints; existing ones are replaced.
        scenes: scenes of the training pool.
        seed: seed of weights, scenes, texts and batches.
        probes: held-out scenes on which the finished models are measured for their cards.
        steps: optimiser steps of every phase; None takes each phase's own.
        device: where to train, such as ``cpu`` or ``cuda``. Metrics are measured on the CPU.
        workers: processes that make the batches of each stream ahead of time; they change nothing about them.
    """
    pool = pretraining.ScenePool(scenes, seed)
    if not _done(work / "tower"):
        train_tower(work, pool, seed, device, workers, steps)
    for name in PHASES:
        if not _done(work / name):
            train_phase(name, work, pool, seed, device, workers, steps)
    for name, measure in _FIGURES.items():
        if not (work / name / "README.md").exists():
            _write_card(name, measure(*_load(work / name), probes), seed, probes, work / name)
    for name in _FIGURES:
        target = output / name
        target.mkdir(parents=True, exist_ok=True)
        for file in (work / name).iterdir():
            file.replace(target / file.name)
