"""The order of the pre-training phases, what each leaves on disk, and the model cards with measured figures."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from fgaif_ray.progress import say
from fgaif_ray.shapes import pretraining, tiny_llava
from fgaif_ray.shapes.probes import measure_answers, measure_captions, measure_extraction
from fgaif_ray.shapes.scenes import draw_scene

CORPUS_SCENES: Final = 3000
BASE_LEARNING_RATE: Final = 1e-3
POLICY_LEARNING_RATE: Final = 5e-4
ANNOTATOR_LEARNING_RATE: Final = 5e-4

_CARD = """---
license: apache-2.0
tags: [llava, embedded-world]
---
# Tiny LLaVA of the embedded world: {name}

A LLaVA (CLIP tower, two-layer projector, Llama; 1.9 million parameters, float32, 60 x 60 pixels) trained from nothing
by `python -m jobs.pretrain_shapes --seed {seed}`. {purpose}

Measured on {count} held-out scenes at the end of that command:

{figures}
"""
_PURPOSES = {
    "policy": (
        "It sees and describes correctly first and is then taught captions with planted errors: objects that usually "
        "come together, default colours, a favoured side, and random slips. Alignment starts from it."
    ),
    "annotator": "It splits sub-sentences into atomic facts (JSON) and says whether a statement is right.",
}


def _corpus(seed: int) -> Iterator[str]:
    generator = random.Random(seed)
    for index in range(CORPUS_SCENES):
        scene = draw_scene("pretrain", index, seed)
        turns = [
            pretraining.caption_turn(scene, pretraining.POSSIBLE_ERRORS, generator),
            *pretraining.question_turns(scene, 2, generator),
            *pretraining.extraction_turns(scene, 1, generator),
        ]
        for turn in turns:
            yield f"USER: {turn.question}\nASSISTANT:\n"
            yield turn.answer


def _load(folder: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    return model, processor


def _done(folder: Path) -> bool:
    return (folder / "model.safetensors").exists()


def _write_card(name: str, figures: dict[str, float], seed: int, count: int, folder: Path) -> None:
    lines = [f"* {key}: {value:.3f}" for key, value in figures.items()]
    for line in lines:
        say(f"{name} {line}")
    text = _CARD.format(name=name, seed=seed, purpose=_PURPOSES[name], count=count, figures="\n".join(lines))
    (folder / "README.md").write_text(text)


def run_phases(work: Path, output: Path, steps: pretraining.PhaseSteps, scenes: int, seed: int, probes: int) -> None:
    """Train what is not there yet: ``work/tower``, ``work/base``, ``output/policy``, ``output/annotator``.

    Args:
        work: folder of the phases in between; what lies there is not trained again.
        output: folder of the two checkpoints; existing ones are replaced.
        steps: optimiser steps per phase.
        scenes: scenes of the training pool.
        seed: seed of weights, scenes, texts and batches.
        probes: held-out scenes on which the finished models are measured for their cards.
    """
    pool = pretraining.ScenePool(scenes, seed)
    if not _done(work / "tower"):
        tokenizer = tiny_llava.train_tokenizer(_corpus(seed))
        processor, model = tiny_llava.build_processor(tokenizer), tiny_llava.build_model(tokenizer, seed)
        packer = pretraining.Packer(processor)
        share = pretraining.train_tower(model, packer, pool, steps.tower)
        say(f"tower: {share:.3f} of the occupied cells told right")
        pretraining.rescale_tower(model, packer, pool)
        share = pretraining.align_projector(model, packer, pool, steps.projector)
        say(f"projector: {share:.3f} of the occupied cells read right")
        tiny_llava.save_checkpoint(model, processor, work / "tower")
    if not _done(work / "name"):
        model, processor = _load(work / "tower")
        naming = pretraining.batches(pool, pretraining.Packer(processor), pretraining.name, 32, seed + 1)
        pretraining.train_language("pre-train naming", model, [naming], steps.name, BASE_LEARNING_RATE)
        tiny_llava.save_checkpoint(model, processor, work / "name")
    if not _done(work / "base"):
        model, processor = _load(work / "name")
        packer = pretraining.Packer(processor)
        streams = [
            pretraining.batches(pool, packer, pretraining.look_up, 6, seed + 2),
            pretraining.batches(pool, packer, pretraining.see_and_describe, 10, seed + 3),
        ]
        pretraining.train_language("pre-train base", model, streams, steps.base, BASE_LEARNING_RATE)
        tiny_llava.save_checkpoint(model, processor, work / "base")
    if not _done(work / "policy"):
        model, processor = _load(work / "base")
        packer = pretraining.Packer(processor)
        erring = pretraining.batches(pool, packer, pretraining.describe_with_errors, 16, seed + 4)
        pretraining.train_language(
            "pre-train policy", model, [erring], steps.policy, POLICY_LEARNING_RATE, freeze_tower=True
        )
        tiny_llava.save_checkpoint(model, processor, work / "policy")
        figures = {
            **measure_captions(model, processor, probes, greedy=False),
            **measure_captions(model, processor, probes, greedy=True),
            **measure_answers(model, processor, probes),
        }
        _write_card("policy", figures, seed, probes, work / "policy")
    if not _done(work / "annotator"):
        model, processor = _load(work / "base")
        looking, reading = pretraining.Packer(processor), pretraining.Packer(processor, with_image=False)
        streams = [
            pretraining.batches(pool, looking, pretraining.verify_only, 8, seed + 5),
            pretraining.batches(pool, reading, pretraining.extract_only, 8, seed + 6),
        ]
        pretraining.train_language("pre-train annotator", model, streams, steps.annotator, ANNOTATOR_LEARNING_RATE)
        tiny_llava.save_checkpoint(model, processor, work / "annotator")
        figures = {**measure_answers(model, processor, probes), **measure_extraction(model, processor, probes)}
        _write_card("annotator", figures, seed, probes, work / "annotator")
    for name in ("policy", "annotator"):
        target = output / name
        target.mkdir(parents=True, exist_ok=True)
        for file in (work / name).iterdir():
            file.replace(target / file.name)
