"""Probes: abilities of a tiny LLaVA, measured with transformers on held-out scenes by the truth oracle."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from fgaif_ray.records import CONSISTENT, FACT_TYPES, HALLUCINATED
from fgaif_ray.segments import split_segments
from fgaif_ray.shapes import packing
from fgaif_ray.shapes.captions import CAPTION_PROMPTS, write_caption
from fgaif_ray.shapes.claims import draw_claim
from fgaif_ray.shapes.oracle import label_claims, measure_coverage, read_claims
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import Scene, draw_scenes
from fgaif_ray.shapes.turns import POSSIBLE_ERRORS, Turn, claim_turn, extraction_turns_of, proofreading_turn


@torch.no_grad()
def measure_answers(model: LlavaForConditionalGeneration, processor: LlavaProcessor, count: int) -> dict[str, float]:
    """Accuracy of yes/no answers per fact type, on four questions a scene, half of them to be answered yes."""
    generator = random.Random(5)
    scenes = draw_scenes("heldout", range(count))
    figures = {}
    for kind in FACT_TYPES:
        conversations = []
        for scene in scenes:
            turns = []
            for number in range(4):
                truth = number % 2 == 0
                claim = draw_claim(scene, kind, truth, generator)
                turns.append(claim_turn(claim, truth, as_statement=number >= 2))
            conversations.append(turns)
        figures[f"answers right, {kind}"] = _share_right(model, processor, scenes, conversations)
    return figures


@torch.no_grad()
def measure_marks(model: LlavaForConditionalGeneration, processor: LlavaProcessor, count: int) -> dict[str, float]:
    """Share of the segments of running texts, one a scene, that the model judges right as it reads them."""
    generator = random.Random(7)
    scenes = draw_scenes("heldout", range(count))
    conversations = [[proofreading_turn(scene, generator)] for scene in scenes]
    return {"sub-sentences of running texts judged right": _share_right(model, processor, scenes, conversations)}


def _share_right(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    scenes: Sequence[Scene],
    conversations: Sequence[Sequence[Turn]],
) -> float:
    """Share of the yes/no answers in conversations about scenes that the model finds more probable."""
    images = np.stack([np.asarray(render(scene)) for scene in scenes])
    yes, no = (processor.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
    batch = packing.Packer(processor).pack(conversations, images)
    hidden = packing.hidden_states(model, batch)  # [count, T, hidden]
    answered = (batch.labels == yes) | (batch.labels == no)
    logits = model.lm_head(hidden[answered])  # [answers, vocabulary]
    right = (logits[:, yes] > logits[:, no]) == (batch.labels[answered] == yes)
    return float(right.float().mean())


@torch.no_grad()
def measure_captions(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, count: int, greedy: bool
) -> dict[str, float]:
    """Hallucination rate per fact type (over the segments that carry it) and coverage of captions."""
    scenes = draw_scenes("heldout", range(count))
    content = [{"type": "image"}, {"type": "text", "text": CAPTION_PROMPTS[0]}]
    conversation: Any = [{"role": "user", "content": content}]  # transformers types it narrower than it takes
    prompt = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    inputs = processor(
        text=[prompt] * count, images=[render(scene) for scene in scenes], return_tensors="pt", add_special_tokens=False
    )
    sampling = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    generate: Any = getattr(model, "generate")  # noqa: B009  its annotation names self twice
    generated = generate(**inputs, max_new_tokens=112, **sampling)
    texts = processor.tokenizer.batch_decode(generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    labels: dict[str, Counter[int]] = {kind: Counter() for kind in FACT_TYPES}
    found = total = 0
    for scene, text in zip(scenes, texts, strict=True):
        claims = read_claims(text, [(span.start, span.end) for span in split_segments(text)])
        for segment in claims:
            for kind, label in label_claims(scene, segment).items():
                labels[kind][label] += 1
        coverage = measure_coverage(scene, claims)
        found += coverage.objects_found + coverage.attributes_found
        total += coverage.objects + coverage.attributes
    decoding = "greedy" if greedy else "sampled"
    figures = {
        f"hallucination rate, {kind}, {decoding}": counts[HALLUCINATED]
        / max(1, counts[HALLUCINATED] + counts[CONSISTENT])
        for kind, counts in labels.items()
    }
    return {**figures, f"coverage, {decoding}": found / total}


@torch.no_grad()
def measure_extraction(model: LlavaForConditionalGeneration, processor: LlavaProcessor, count: int) -> dict[str, float]:
    """Share of segments whose facts are extracted exactly, by unconstrained greedy decoding.

    Measured on one segment of each scene's caption, whichever it is, and on one that begins with a pronoun where
    there is one.
    """
    generator = random.Random(6)
    any_one: list[bool] = []
    pronoun: list[bool] = []
    for scene in draw_scenes("heldout", range(count)):
        turns = extraction_turns_of(write_caption(scene, POSSIBLE_ERRORS, generator))
        any_one.append(_extracts(model, processor, generator.choice(turns)[0]))
        if referring := [turn for turn, refers in turns if refers]:
            pronoun.append(_extracts(model, processor, generator.choice(referring)))
    return {
        "sub-sentences extracted exactly": sum(any_one) / len(any_one),
        "sub-sentences that begin with a pronoun extracted exactly": sum(pronoun) / max(1, len(pronoun)),
    }


def _extracts(model: LlavaForConditionalGeneration, processor: LlavaProcessor, turn: Turn) -> bool:
    generate: Any = getattr(model, "generate")  # noqa: B009  its annotation names self twice
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": turn.question}], add_generation_prompt=True, tokenize=False
    )
    ids = processor.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    output = generate(**ids, max_new_tokens=160, do_sample=False)
    text = processor.tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    try:
        return bool(json.loads(text) == json.loads(turn.answer))
    except json.JSONDecodeError:
        return False
