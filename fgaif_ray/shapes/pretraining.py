"""Pre-training of the three tiny LLaVAs from nothing, with a seed.

Three phases: (1) the vision tower learns to tell what is in each cell, and the projector to put that into the language
model's own words; (2) the language model learns to look, to describe correctly and to answer questions; (3) brief
specialisation: the *policy* is taught captions with planted errors, so that it hallucinates because of what it was
taught to say and not because it cannot see; the *annotator* is taught verification, the *extractor* fact extraction.

Everything runs on the device that the model is on.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import LlavaForConditionalGeneration

from fgaif_ray.progress import Progress
from fgaif_ray.shapes.packing import PackedBatch, Packer, language_loss
from fgaif_ray.shapes.render import render
from fgaif_ray.shapes.scenes import COLORS, GRID, SHAPES, SIZES, Scene, draw_scene
from fgaif_ray.shapes.turns import COLUMNS, ROWS, TurnMaker
from fgaif_ray.vlm.schedule import learning_rate_scale

_Made = TypeVar("_Made")
_Make = Callable[[random.Random, np.random.Generator], _Made]
_WARM_UP: Final = 50
"""Steps."""
_SEEN_AT_ONCE: Final = 128
"""Images of a step in the phases that train on single cells."""
_NOTE_EVERY: Final = 10
"""Steps between two readings of the loss. On a GPU each reading has to wait."""


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

    def draw(self, count: int, generator: np.random.Generator) -> tuple[list[Scene], np.ndarray]:
        """``count`` scenes with their images, brightness slightly varied again at each draw."""
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


def _set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int, peak: float) -> None:
    """Set the learning rate of a step: a linear warm-up to the peak, then half a cosine down to a twentieth of it."""
    scale = learning_rate_scale(step, schedule="cosine", warmup_steps=_WARM_UP, total_steps=steps)
    for group in optimizer.param_groups:
        group["lr"] = peak * (scale if step < _WARM_UP else 0.05 + 0.95 * scale)


def _cell_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """The features of images that the projector reads, ``[batch, cells, hidden]``."""
    outputs: Any = model.model.vision_tower(pixels, output_hidden_states=True)
    features: Tensor = outputs.hidden_states[model.config.vision_feature_layer][:, 1:]
    return features


def train_tower(
    model: LlavaForConditionalGeneration,
    packer: Packer,
    pool: ScenePool,
    steps: int,
    seed: int,
    workers: int = 0,
) -> float:
    """Phase 1: the vision tower as a per-cell classifier of shape, colour, size and position.

    Position keeps relations learnable later: without that target they stay at chance for thousands of steps.

    Returns:
        The share of occupied cells whose shape, colour and size are all right, over the last 20 steps.
    """
    tower = model.model.vision_tower
    sizes = (len(SHAPES) + 1, len(COLORS) + 1, len(SIZES) + 1, GRID * GRID)
    head = nn.Linear(tower.config.hidden_size, sum(sizes)).to(model.device)
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.01)
    right: list[Tensor] = []
    with Progress("pre-train tower", steps, "steps") as progress:
        for step, seen in enumerate(_seen(pool, packer, seed, steps, workers)):
            _set_rate(optimizer, step, steps, 1e-3)
            targets, pixels = (part.to(model.device) for part in seen)  # [batch, cells, 4], [batch, 3, size, size]
            features = _cell_features(model, pixels)  # [batch, cells, hidden]
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
            right.append(told.all(-1)[targets[:, :, 0] > 0].float().mean())
            if step % _NOTE_EVERY == 0:
                note = f"loss {loss.item():.3f}, cells right {right[-1].item():.3f}"
            progress.advance(note=note)
    return float(torch.stack(right[-20:]).mean())


@torch.no_grad()
def rescale_tower(model: LlavaForConditionalGeneration, packer: Packer, pool: ScenePool, seed: int) -> None:
    """Scale the tower's features to unit deviation without changing what it computes.

    Everything that writes to the residual stream is scaled alike; the layer norms that read it are not affected.
    Features of deviation 4 and more, as the first phase leaves them, make the projector all but untrainable.
    """
    tower: Any = model.model.vision_tower
    _, images = pool.draw(256, np.random.default_rng(seed))
    outputs = tower(packer.pixels(images).to(model.device), output_hidden_states=True)
    scale = 1.0 / outputs.hidden_states[model.config.vision_feature_layer].std()
    writers = [tower.pre_layrnorm]
    for layer in tower.encoder.layers:
        writers += [layer.self_attn.out_proj, layer.mlp.fc2]
    for writer in writers:
        writer.weight.mul_(scale)
        writer.bias.mul_(scale)


def align_projector(
    model: LlavaForConditionalGeneration,
    packer: Packer,
    pool: ScenePool,
    steps: int,
    seed: int,
    workers: int = 0,
) -> float:
    """Phase 1b: the projector maps each cell to the sum of the embeddings of the words that name what is in it.

    The language model then meets image tokens in the space of its own words, and grounding becomes a matter of
    copying and matching; without this start, captions stay blind for many hundreds of steps. The place of a cell is
    put in words alike (ROWS, COLUMNS), with a random direction per axis along which rows and columns are in order, so
    that to compare two places is to subtract them.

    Returns:
        The share of the occupied cells whose three words are the nearest ones at the end.
    """
    projector: Any = model.model.multi_modal_projector
    embedding = model.model.language_model.embed_tokens.weight.detach()  # [vocabulary, hidden]
    tables = [  # row 0, an empty cell, is named by nothing
        torch.cat([embedding.new_zeros(1, embedding.shape[1]), embedding[[packer.word_id(f" {n}") for n in names]]])
        for names in (SHAPES, COLORS, SIZES)
    ]
    words = [embedding[[packer.word_id(f" {name}") for name in names]] for names in (ROWS, COLUMNS)]
    order = torch.arange(GRID, device=model.device)[:, None] - GRID // 2  # [GRID, 1]
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(2, embedding.shape[1], generator=generator).to(model.device) * embedding.std()
    rows, columns = (word + order * direction for word, direction in zip(words, directions, strict=True))
    cells = torch.arange(GRID * GRID)
    places = rows[cells // GRID] + columns[cells % GRID]  # [cells, hidden]
    optimizer = torch.optim.AdamW(projector.parameters(), lr=2e-3, weight_decay=0.0)
    right = 0.0
    with Progress("align projector", steps, "steps") as progress:
        for step, seen in enumerate(_seen(pool, packer, seed, steps, workers)):
            _set_rate(optimizer, step, steps, 2e-3)
            targets, pixels = (part.to(model.device) for part in seen)  # [batch, cells, 4], [batch, 3, size, size]
            named = torch.stack([table[targets[:, :, i]] for i, table in enumerate(tables)]).sum(0)
            wanted = places + named  # [batch, cells, hidden]
            occupied = targets[:, :, 0] > 0
            with torch.no_grad():
                features = _cell_features(model, pixels)  # [batch, cells, hidden]
            made = projector(features)
            squares = (made - wanted).square().mean(-1) / embedding.var()  # [batch, cells]
            error = squares[occupied].mean() + squares[~occupied].mean()
            for i, table in enumerate(tables):
                scores = (made - places)[occupied] @ table[1:].T / embedding.var() / embedding.shape[1] * 8
                error = error + nn.functional.cross_entropy(scores, targets[occupied][:, i] - 1)
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
            if step % _NOTE_EVERY == 0 or step == steps - 1:
                read = torch.stack([((made - places) @ table[1:].T).argmax(-1) + 1 for table in tables], -1)
                right = (read == targets[:, :, :3]).all(-1)[occupied].float().mean().item()
                note = f"error {error.item():.3f}, cells read right {right:.3f}"
            progress.advance(note=note)
    return right


class _Steps(Dataset[_Made]):
    """The batches of optimiser steps, determined by the seed and the step alone."""

    def __init__(self, make: _Make[_Made], seed: int, steps: int) -> None:
        self._make, self._seed, self._steps = make, seed, steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> _Made:
        return self._make(random.Random(f"{self._seed}:{step}"), np.random.default_rng([self._seed, step]))


def _as_it_is(made: _Made) -> _Made:
    return made


def in_steps(make: _Make[_Made], seed: int, steps: int, workers: int = 0) -> Iterator[_Made]:
    """Yield what ``make`` returns for each of ``steps`` steps, from the step's own generators.

    Args:
        make: called with a Python and a NumPy generator.
        seed: of all steps.
        steps: how many.
        workers: processes that make them ahead of time, worth it where a GPU waits; none makes them here. They change
            nothing about what is made.
    """
    loader: DataLoader[_Made] = DataLoader(
        _Steps(make, seed, steps),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=8 if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    return iter(loader)


def batches(
    pool: ScenePool,
    packer: Packer,
    make_turns: TurnMaker,
    batch_size: int,
    seed: int,
    steps: int,
    workers: int = 0,
) -> Iterator[PackedBatch]:
    """Packed batches of ``batch_size`` images, with the conversations that ``make_turns`` makes of them."""

    def make(generator: random.Random, draws: np.random.Generator) -> PackedBatch:
        scenes, images = pool.draw(batch_size, draws)
        conversations = [make_turns(scene, generator) for scene in scenes]
        return packer.pack(conversations, images if packer.with_image else None)

    return in_steps(make, seed, steps, workers)


def _seen(pool: ScenePool, packer: Packer, seed: int, steps: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each step what the cells hold, ``[batch, cells, 4]``, and pixel values."""

    def make(_: random.Random, draws: np.random.Generator) -> tuple[Tensor, Tensor]:
        scenes, images = pool.draw(_SEEN_AT_ONCE, draws)
        return _cell_targets(scenes), packer.pixels(images)

    return in_steps(make, seed, steps, workers)


def train_language(
    name: str,
    model: LlavaForConditionalGeneration,
    streams: Sequence[Iterator[PackedBatch]],
    steps: int,
    learning_rate: float,
    weight_decay: float,
) -> float:
    """Train the language model on one batch of each stream a step, their losses summed.

    Tower and projector stay as they are. Left free, they forget the shapes within some hundred steps (a linear probe
    falls from 0.97 to 0.4) while colours survive, and captions and answers no longer get the objects right.

    Args:
        name: of the progress line.
        model: the model.
        streams: batches of each step.
        steps: optimiser steps, the length of every stream.
        learning_rate: peak, of the matrices inside the layers (Muon, whose updates are scaled to the size of AdamW's);
            everything else (AdamW) learns at a tenth of it.
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
        (torch.optim.Muon(matrices, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"), learning_rate),
        (torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.01), learning_rate / 10),
    ]
    losses: list[Tensor] = []
    with Progress(name, steps, "steps") as progress:
        for step, parts in enumerate(zip(*streams, strict=True)):
            for optimizer, peak in peaks:
                _set_rate(optimizer, step, steps, peak)
                optimizer.zero_grad()
            total = torch.zeros((), device=model.device)
            for batch in parts:
                loss = language_loss(model, batch.to(model.device))
                loss.backward()
                total += loss.detach()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer, _ in peaks:
                optimizer.step()
            losses.append(total)
            if step % _NOTE_EVERY == 0:
                note = f"loss {total.item():.4f}"
            progress.advance(note=note)
    return float(torch.stack(losses[-20:]).mean())
