"""Pre-training of the three tiny LLaVAs from nothing, on CPU, with a seed.

Three phases: (1) the vision tower learns to tell what is in each cell, and the projector to put that into the language
model's own words; (2) the language model learns to look, to describe correctly and to answer questions; (3) brief
specialisation: the *policy* is taught captions with planted errors, so that it hallucinates because of what it was
taught to say and not because it cannot see; the *annotator* is taught verification, the *extractor* fact extraction.

One training sequence holds one image and several conversations about it. A block mask keeps the conversations apart and
positions restart, so that each is exactly the single-turn conversation the chat template makes, at a fraction of the
cost.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from fgaif_ray.feedback.prompts import load_prompt
from fgaif_ray.progress import Progress
from fgaif_ray.records import FACT_TYPES
from fgaif_ray.segments import split_segments
from fgaif_ray.shapes.captions import CAPTION_PROMPTS, NO_ERRORS, POLICY_ERRORS, ErrorRates, write_caption
from fgaif_ray.shapes.claims import Claim, draw_claim
from fgaif_ray.shapes.muon import Muon
from fgaif_ray.shapes.oracle import read_claims
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import COLORS, GRID, SHAPES, SIZES, Scene, draw_scene

IGNORE: Final = -100
HEAVY_WEIGHT: Final = 4.0
"""Loss weight of the words that a packer is told to weigh."""
ROWS: Final = ("above", "level", "below")
COLUMNS: Final = ("left", "aligned", "right")
ANSWERS: Final = ("Yes", "No")
SEEN: Final = (*ANSWERS, *(f" {word}" for word in (*SHAPES, *COLORS, *SIZES, *ROWS, *COLUMNS)))
"""The words that hang on the image."""
POSSIBLE_ERRORS: Final = ErrorRates(0.3, 0.3, 0.3, 0.2, 0.2, 0.2, 0.3)
"""Error rates of the texts on which fact extraction is taught: any claim may be wrong, the extractor does not judge."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One single-turn conversation: what is asked and what is to be answered."""

    question: str
    answer: str


TurnMaker = Callable[[Scene, random.Random], list[Turn]]


def facts_json(claims_by_type: dict[str, list[str]]) -> str:
    """The answer the extraction prompt asks for, with a space after each comma and colon."""
    return json.dumps({kind: claims_by_type[kind] for kind in FACT_TYPES})


def caption_turn(scene: Scene, rates: ErrorRates, generator: random.Random) -> Turn:
    """One captioning conversation."""
    return Turn(generator.choice(CAPTION_PROMPTS), write_caption(scene, rates, generator))


def claim_turn(claim: Claim, truth: bool, as_statement: bool) -> Turn:
    """A claim to be judged, in the form of the verification prompt or as a question in POPE's form."""
    question = load_prompt("verify-v1").render(statement=claim.statement()) if as_statement else claim.question()
    return Turn(question, "Yes" if truth else "No")


def question_turns(scene: Scene, count: int, generator: random.Random) -> list[Turn]:
    """Yes/no questions, 40 % of them in POPE's form and 60 % in the form of the verification prompt."""
    turns = []
    kinds = generator.choices(FACT_TYPES, weights=(0.2, 0.35, 0.45), k=count)
    for kind in kinds:
        truth = generator.random() < 0.5
        claim = draw_claim(scene, kind, truth, generator)
        turns.append(claim_turn(claim, truth, as_statement=generator.random() >= 0.4))
    return turns


def extraction_turns(scene: Scene, count: int, generator: random.Random) -> list[Turn]:
    """Fact extraction from sub-sentences of a caption that may be wrong (text only: the image must not matter)."""
    prompt = load_prompt("extract-short-v1")
    text = write_caption(scene, POSSIBLE_ERRORS, generator)
    spans = [(span.start, span.end) for span in split_segments(text)]
    claims = read_claims(text, spans)
    turns = []
    for index in generator.sample(range(len(spans)), min(count, len(spans))):
        start, end = spans[index]
        facts: dict[str, list[str]] = {kind: [] for kind in FACT_TYPES}
        for claim in claims[index]:
            facts[claim.type].append(claim.statement())
        question = prompt.render(response=text, segment=text[start:end].strip())
        turns.append(Turn(question, facts_json(facts)))
    return turns


@dataclass(frozen=True, slots=True)
class Batch:
    """One packed batch; B sequences of T tokens."""

    input_ids: Tensor  # [B, T]
    position_ids: Tensor  # [B, T]
    attention_mask: Tensor  # [B, 1, T, T], additive
    labels: Tensor  # [B, T], IGNORE where nothing is learnt; already shifted
    weights: Tensor  # [B, T], of the losses
    pixel_values: Tensor | None  # [B, 3, IMAGE_SIZE, IMAGE_SIZE]


class Packer:
    """Turns conversations about an image into packed training batches; ``heavy`` words count HEAVY_WEIGHT times."""

    def __init__(self, processor: LlavaProcessor, with_image: bool = True, heavy: Sequence[str] = ANSWERS) -> None:
        self._processor, self._tokenizer, self.with_image = processor, processor.tokenizer, with_image
        marker = self._render("\x00")
        prefix, self._suffix = marker.split("\x00")
        if with_image:
            prefix = prefix.replace("<image>", "<image>" * GRID * GRID)
        self._prefix_ids: list[int] = self._tokenizer(prefix, add_special_tokens=False)["input_ids"]
        self._heavy_ids = torch.tensor([self.word_id(word) for word in heavy])
        image_processor = processor.image_processor
        self._mean = torch.tensor(image_processor.image_mean).view(1, 3, 1, 1)
        self._std = torch.tensor(image_processor.image_std).view(1, 3, 1, 1)

    def _render(self, question: str) -> str:
        content: list[dict[str, str]] = [{"type": "text", "text": question}]
        if self.with_image:
            content.insert(0, {"type": "image"})
        conversation: Any = [{"role": "user", "content": content}]  # transformers types it narrower than it takes
        text: str = self._processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        return text

    def word_id(self, word: str) -> int:
        """The id of a word (with its leading space) that stands for it; the first where the tokenizer splits it."""
        ids: list[int] = self._tokenizer(word, add_special_tokens=False)["input_ids"]
        return ids[0]

    def pixels(self, images: np.ndarray) -> Tensor:
        """Normalised pixel values of uint8 images ``[B, height, width, 3]``."""
        values = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255.0
        return (values - self._mean) / self._std

    def pack(self, conversations: Sequence[Sequence[Turn]], images: np.ndarray | None) -> Batch:
        """Pack the conversations of each image behind its prefix."""
        questions = [turn.question + self._suffix for turns in conversations for turn in turns]
        answers = [turn.answer for turns in conversations for turn in turns]
        encode = self._tokenizer
        question_ids = iter(encode(questions, add_special_tokens=False)["input_ids"])
        answer_ids = iter(encode(answers, add_special_tokens=False)["input_ids"])
        prefix = len(self._prefix_ids)
        rows: list[tuple[list[int], list[int], list[int], list[int]]] = []
        for turns in conversations:
            ids, positions, branches = list(self._prefix_ids), list(range(prefix)), [0] * prefix
            labels = [IGNORE] * prefix
            for branch in range(1, len(turns) + 1):
                asked, answered = next(question_ids), [*next(answer_ids), encode.eos_token_id]
                ids += asked + answered
                positions += range(prefix, prefix + len(asked) + len(answered))
                branches += [branch] * (len(asked) + len(answered))
                labels += [IGNORE] * (len(asked) - 1) + answered + [IGNORE]
            rows.append((ids, positions, branches, labels))
        length = max(len(row[0]) for row in rows)

        def padded(column: int, value: int) -> Tensor:
            return torch.tensor([list(row[column]) + [value] * (length - len(row[column])) for row in rows])

        branch_ids = padded(2, -1)  # [B, T]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        same = branch_ids[:, :, None] == branch_ids[:, None, :]
        visible = (same | (branch_ids[:, None, :] == 0)) & causal  # [B, T, T]
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        pixel_values = self.pixels(images) if images is not None else None
        labels_of_rows = padded(3, IGNORE)
        weights = torch.where(torch.isin(labels_of_rows, self._heavy_ids), HEAVY_WEIGHT, 1.0)
        return Batch(padded(0, encode.pad_token_id), padded(1, 0), mask[:, None], labels_of_rows, weights, pixel_values)


def language_loss(model: LlavaForConditionalGeneration, batch: Batch) -> Tensor:
    """Mean cross-entropy over the answer tokens of a packed batch (scalar).

    Yes or no is one token, and most tokens of a caption are phrasing, so the words that hang on the image weigh more.
    """
    hidden = model.model(
        input_ids=batch.input_ids,
        pixel_values=batch.pixel_values,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state  # [B, T, hidden]
    learnt = batch.labels != IGNORE
    logits = model.lm_head(hidden[learnt])  # [answer tokens, vocabulary]
    losses = nn.functional.cross_entropy(logits, batch.labels[learnt], reduction="none")
    weights = batch.weights[learnt]
    return (losses * weights).sum() / weights.sum()


class ScenePool:
    """A fixed pool of pre-training scenes and their rendered images, drawn from in random batches."""

    def __init__(self, size: int, seed: int) -> None:
        self.scenes: list[Scene] = []
        images = []
        with Progress("render", size, "scenes") as progress:
            for index in range(size):
                scene = draw_scene("pretrain", index, seed)
                self.scenes.append(scene)
                images.append(np.asarray(render(scene)))
                progress.advance()
        self.images = np.stack(images)  # [size, IMAGE_SIZE, IMAGE_SIZE, 3]
        self._generator = np.random.default_rng(seed)

    def draw(self, count: int, generator: np.random.Generator | None = None) -> tuple[list[Scene], np.ndarray]:
        """``count`` scenes with their images, brightness slightly varied anew at each draw."""
        generator = generator or self._generator
        chosen = generator.integers(len(self.scenes), size=count)
        shift = generator.normal(0, 4, (count, 1, 1, 3)) + generator.normal(0, 3, (count, 60, 60, 1))
        images = np.clip(self.images[chosen].astype(np.float32) + shift, 0, 255).astype(np.uint8)
        return [self.scenes[i] for i in chosen], images


def _cell_targets(scenes: Sequence[Scene]) -> Tensor:
    """Shape, colour, size (0 where empty) and position of every cell: ``[batch, cells, 4]``."""
    targets = torch.zeros(len(scenes), GRID * GRID, 4, dtype=torch.long)
    targets[:, :, 3] = torch.arange(GRID * GRID)
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            values = [SHAPES.index(item.shape) + 1, COLORS.index(item.color) + 1, SIZES.index(item.size) + 1]
            targets[row, item.row * GRID + item.column, :3] = torch.tensor(values)
    return targets


def _schedule(step: int, steps: int, peak: float, warmup: int = 50) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, steps - warmup)))))


def train_tower(
    model: LlavaForConditionalGeneration, packer: Packer, pool: ScenePool, steps: int, batch_size: int = 128
) -> float:
    """Phase 1: the vision tower as a per-cell classifier of shape, colour, size and position.

    Position keeps relations learnable later: without that target they stay at chance for thousands of steps.

    Returns:
        The share of occupied cells whose shape, colour and size are all told right, over the last 20 steps.
    """
    tower = model.model.vision_tower
    sizes = (len(SHAPES) + 1, len(COLORS) + 1, len(SIZES) + 1, GRID * GRID)
    head = nn.Linear(tower.config.hidden_size, sum(sizes))
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.01)
    right: list[float] = []
    with Progress("pre-train tower", steps, "steps") as progress:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = _schedule(step, steps, 1e-3)
            scenes, images = pool.draw(batch_size)
            targets = _cell_targets(scenes)  # [batch, cells, 4]
            outputs = tower(packer.pixels(images), output_hidden_states=True)
            features = outputs.hidden_states[model.config.vision_feature_layer][:, 1:]  # [batch, cells, hidden]
            parts = head(features).split(sizes, dim=-1)
            losses = [
                nn.functional.cross_entropy(part.flatten(0, 1), targets[:, :, i].flatten())
                for i, part in enumerate(parts)
            ]
            loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            told = torch.stack([part.argmax(-1) for part in parts[:3]], -1) == targets[:, :, :3]
            right.append(told.all(-1)[targets[:, :, 0] > 0].float().mean().item())
            progress.advance(note=f"loss {loss.item():.3f}, cells right {right[-1]:.3f}")
    return sum(right[-20:]) / len(right[-20:])


@torch.no_grad()
def rescale_tower(model: LlavaForConditionalGeneration, packer: Packer, pool: ScenePool) -> None:
    """Scale the tower's features to unit deviation without changing what it computes.

    Everything that writes to the residual stream is scaled alike; the layer norms that read it do not notice.
    Features of deviation 4 and more, as the first phase leaves them, make the projector all but untrainable.
    """
    tower: Any = model.model.vision_tower
    _, images = pool.draw(256)
    outputs = tower(packer.pixels(images), output_hidden_states=True)
    scale = 1.0 / outputs.hidden_states[model.config.vision_feature_layer].std()
    writers = [tower.pre_layrnorm]
    for layer in tower.encoder.layers:
        writers += [layer.self_attn.out_proj, layer.mlp.fc2]
    for writer in writers:
        writer.weight.mul_(scale)
        writer.bias.mul_(scale)


def align_projector(
    model: LlavaForConditionalGeneration, packer: Packer, pool: ScenePool, steps: int, batch_size: int = 128
) -> float:
    """Phase 1b: the projector maps each cell to the sum of the embeddings of the words that name what is in it.

    The language model then meets image tokens in the space of its own words, and grounding becomes a matter of
    copying and matching; without this start, captions stay blind for many hundreds of steps. The place of a cell is
    put in words alike (ROWS, COLUMNS), with a random direction per axis along which rows and columns are in order, so
    that to compare two places is to subtract them.

    Returns:
        The share of the occupied cells whose three words are the nearest ones at the end.
    """
    tower: Any = model.model.vision_tower
    projector: Any = model.model.multi_modal_projector
    embedding = model.model.language_model.embed_tokens.weight.detach()  # [vocabulary, hidden]
    tables = [  # row 0, an empty cell, is named by nothing
        torch.cat([torch.zeros(1, embedding.shape[1]), embedding[[packer.word_id(f" {name}") for name in names]]])
        for names in (SHAPES, COLORS, SIZES)
    ]
    words = [embedding[[packer.word_id(f" {name}") for name in names]] for names in (ROWS, COLUMNS)]
    order = torch.arange(GRID)[:, None] - GRID // 2  # [GRID, 1]
    rows, columns = (word + order * torch.randn(embedding.shape[1]) * embedding.std() for word in words)
    cells = torch.arange(GRID * GRID)
    places = rows[cells // GRID] + columns[cells % GRID]  # [cells, hidden]
    optimizer = torch.optim.AdamW(projector.parameters(), lr=2e-3, weight_decay=0.0)
    right = 0.0
    with Progress("align projector", steps, "steps") as progress:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = _schedule(step, steps, 2e-3)
            scenes, images = pool.draw(batch_size)
            targets = _cell_targets(scenes)  # [batch, cells, 4]
            named = torch.stack([table[targets[:, :, i]] for i, table in enumerate(tables)]).sum(0)
            wanted = places + named  # [batch, cells, hidden]
            occupied = targets[:, :, 0] > 0
            with torch.no_grad():
                outputs = tower(packer.pixels(images), output_hidden_states=True)
                features = outputs.hidden_states[model.config.vision_feature_layer][:, 1:]  # [batch, cells, hidden]
            made = projector(features)
            squares = (made - wanted).square().mean(-1) / embedding.var()  # [batch, cells]
            error = squares[occupied].mean() + squares[~occupied].mean()
            for i, table in enumerate(tables):
                scores = (made - places)[occupied] @ table[1:].T / embedding.var() / embedding.shape[1] * 8
                error = error + nn.functional.cross_entropy(scores, targets[occupied][:, i] - 1)
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            if step % 20 == 0 or step == steps - 1:
                read = torch.stack([((made - places) @ table[1:].T).argmax(-1) + 1 for table in tables], -1)
                right = (read == targets[:, :, :3]).all(-1)[occupied].float().mean().item()
            progress.advance(note=f"error {error.item():.3f}, cells read right {right:.3f}")
    return right


def batches(pool: ScenePool, packer: Packer, make_turns: TurnMaker, batch_size: int, seed: int) -> Iterator[Batch]:
    """Endless packed batches of ``batch_size`` images, with the conversations that ``make_turns`` makes of them."""
    generator, draws = random.Random(seed), np.random.default_rng(seed)
    while True:
        scenes, images = pool.draw(batch_size, draws)
        conversations = [make_turns(scene, generator) for scene in scenes]
        yield packer.pack(conversations, images if packer.with_image else None)


def train_language(
    name: str,
    model: LlavaForConditionalGeneration,
    streams: Sequence[Iterator[Batch]],
    steps: int,
    learning_rate: float,
    weight_decay: float,
) -> float:
    """Train the language model on one batch of each stream a step, their losses summed.

    Tower and projector stay as they are. Left free, they forget the shapes within some hundred steps (a linear probe
    falls from 0.97 to 0.4) while colours survive, and no caption or answer gets the objects right any more.

    Args:
        name: of the progress line.
        model: the model.
        streams: endless batches.
        steps: optimiser steps.
        learning_rate: peak, of the matrices inside the layers (Muon); everything else (AdamW) learns at a tenth of it.
        weight_decay: of the matrices inside the layers.

    Returns:
        The mean loss over the last 20 steps.
    """
    for parameter in [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]:
        parameter.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in model.model.language_model.layers.parameters() if parameter.ndim == 2]
    inside = set(map(id, matrices))
    others = [parameter for parameter in parameters if id(parameter) not in inside]
    peaks: list[tuple[torch.optim.Optimizer, float]] = [
        (Muon(matrices, lr=learning_rate, weight_decay=weight_decay), learning_rate),
        (torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01), learning_rate / 10),
    ]
    losses: list[float] = []
    with Progress(name, steps, "steps") as progress:
        for step in range(steps):
            for optimizer, peak in peaks:
                for group in optimizer.param_groups:
                    group["lr"] = _schedule(step, steps, peak)
                optimizer.zero_grad()
            total = 0.0
            for stream in streams:
                loss = language_loss(model, next(stream))
                loss.backward()
                total += loss.item()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer, _ in peaks:
                optimizer.step()
            losses.append(total)
            progress.advance(note=f"loss {total:.4f}")
    return sum(losses[-20:]) / len(losses[-20:])


def _list_turn(scene: Scene) -> Turn:
    return Turn("List everything.", ",".join(f" {o.size} {o.color} {o.shape}" for o in scene.objects))


def name(scene: Scene, generator: random.Random) -> list[Turn]:
    """Phase 2a: list the scene, look up objects that may be absent, say where one stands, and how two stand.

    Nearly every answer token hangs on the image, so that looking is learnt within some hundred steps; from captions and
    yes/no answers alone, whose tokens are mostly phrasing, it takes thousands. Names are asked with a space before
    them: the very token that captions hold.
    """
    turns = [_list_turn(scene)]
    asked = [*generator.sample(SHAPES, 4), *(item.shape for item in generator.sample(scene.objects, 2))]
    for shape in asked:
        found = scene.find(shape)
        turns.append(Turn(f"the {shape}?", f"Yes {found.color} {found.size}" if found else "No"))
    turns += [
        Turn(f"where is the {item.shape}?", f" {ROWS[item.row]} {COLUMNS[item.column]}")
        for item in generator.sample(scene.objects, 2)
    ]
    for _ in range(3):
        first, second = generator.sample(scene.objects, 2)
        across = ["right", "aligned", "left"][1 + (second.column > first.column) - (second.column < first.column)]
        down = ["below", "level", "above"][1 + (second.row > first.row) - (second.row < first.row)]
        turns.append(Turn(f"the {first.shape} the {second.shape}?", f" {across} {down}"))
    return turns


def answer(scene: Scene, generator: random.Random) -> list[Turn]:
    """Phase 2b: mostly questions, and a correct caption."""
    return [*_captions(scene, 1, generator), *question_turns(scene, 6, generator)]


def describe(scene: Scene, generator: random.Random) -> list[Turn]:
    """Phase 2c: correct captions and questions."""
    return [*_captions(scene, 3, generator), *question_turns(scene, 4, generator)]


def describe_more(scene: Scene, generator: random.Random) -> list[Turn]:
    """Phase 2d, policy: correct captions, and a question so that answering is not forgotten."""
    return [*_captions(scene, 5, generator), *question_turns(scene, 1, generator)]


def _captions(scene: Scene, count: int, generator: random.Random) -> list[Turn]:
    return [caption_turn(scene, NO_ERRORS, generator) for _ in range(count)]


def describe_with_errors(scene: Scene, generator: random.Random) -> list[Turn]:
    """Phase 3, policy: a caption with planted errors; questions stay truthful."""
    return [caption_turn(scene, POLICY_ERRORS, generator), *question_turns(scene, 2, generator)]


def verify_only(scene: Scene, generator: random.Random) -> list[Turn]:
    """Phase 3, annotator: many questions."""
    return question_turns(scene, 10, generator)


def extract_only(scene: Scene, generator: random.Random) -> list[Turn]:
    """Phase 3, extractor: facts of three sub-sentences."""
    return extraction_turns(scene, 3, generator)
