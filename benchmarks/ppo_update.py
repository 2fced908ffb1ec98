"""Responses per second of the learner's update, over a bare torch loop of the same forward and backward passes.

A batch of the configuration's size, captions of scenes (as long as the policy's responses) with random rewards; the
same model, one thread, and for both the same minibatches in the same micro-batches with the same padding, in every
epoch.

* Ours is what the learner times as ``timing/update``: `prepare` (KL penalty, advantages, whitening) and
  `PPOUpdater.update` (policy and critic forward and backward, losses, clipping, statistics, optimiser steps).
* Theirs (`benchmarks.gpu_bare`) is the decoder's forward and backward passes for policy and critic, as many, with their
  heads, cross-entropy and squared values; token embeddings with the image merged in and all indices are prepared.

The vision tower is in neither side, and neither are the passes without gradients that come before an update (policy,
reference, critic), unless ``estimates`` asks for them, on both sides; `benchmarks.gpu` measures the update with them.
"""

import math
import random
import tempfile
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu_bare import BareUpdate
from benchmarks.gpu_model import rewarded_trajectories
from benchmarks.ppo_rounds import Rounds, draw_questions, load_policy, take_turns
from fgaif_ray.config import Config, PPOConfig
from fgaif_ray.images import load_image
from fgaif_ray.rl.micro_batches import ESTIMATE_FACTOR
from fgaif_ray.rl.micro_batches import micro_batches as cut_micro_batches
from fgaif_ray.rl.policy import EncodedRows, PolicyModel
from fgaif_ray.rl.step import PPOUpdater, estimate, prepare
from fgaif_ray.rl.trajectories import collate
from fgaif_ray.shapes.captions import POLICY_ERRORS, write_caption
from fgaif_ray.shapes.scenes import draw_scene
from fgaif_ray.vlm.group import LearnerGroup

THREADS = 1


def measure(config: Config, rounds: int, *, estimates: bool = False, device: str = "cpu") -> Rounds:
    """Responses per second of both.

    Args:
        config: its policy and align sections are measured.
        rounds: that are counted.
        estimates: whether the passes without gradients are measured too.
        device: of both.
    """
    torch.set_num_threads(THREADS)
    align, ppo, seed = config.align, config.align.ppo, config.run.seed
    model = load_policy(config, device)
    group = LearnerGroup(model.device)
    updater = PPOUpdater(model, ppo, group, align.steps)
    rows = encode_captions(config, model)
    pass_rows = ppo.micro_batch_size * ESTIMATE_FACTOR
    before = estimate(model, rows, pass_rows)
    trajectories = rewarded_trajectories(rows, before.log_probs, seed)
    batch = collate(trajectories, model.backbone.eos_token_id).to(model.device)
    minibatches = math.ceil(align.rollout_batch_size / ppo.minibatch_size)
    passes = list(rows.chunks(pass_rows)) if estimates else []
    micro_batches = list(update_passes(rows, ppo, minibatches, seed))
    bare = BareUpdate(model, rows, micro_batches=micro_batches, passes=passes, epochs=1)

    def ours(_number: int) -> int:
        now = estimate(model, rows, pass_rows) if estimates else before
        experience = prepare(rows, batch, now, ppo, align.kl, align.kl.coefficient, group)
        figures = updater.update(experience, 0, torch.Generator().manual_seed(seed), minibatches)
        if figures["update/skipped"]:
            raise ArithmeticError("an optimiser step was skipped: a gradient was not finite")
        _wait(model.device)
        return len(rows)

    def theirs(_number: int) -> int:
        bare.run()
        _wait(model.device)
        return len(rows)

    found = take_turns(ours, theirs, rounds)
    print(
        f"update: {len(rows)} responses of {float(rows.response_lengths.float().mean()):.1f} tokens, {ppo.epochs} "
        f"epochs of {minibatches} minibatches, micro-batches of {ppo.micro_batch_tokens or ppo.micro_batch_size}"
    )
    return found


def _wait(device: torch.device) -> None:
    """Wait until the device has computed what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def encode_captions(config: Config, model: PolicyModel) -> EncodedRows:
    """A step's batch of captions, each about the image that it was written for."""
    size, backbone = config.align.rollout_batch_size, model.backbone
    with tempfile.TemporaryDirectory() as folder:
        questions = draw_questions(config.data.prompts, 0, size, folder)
        images = [load_image(one.image) for one in questions]
    captions = [write_caption(draw_scene("train", index), POLICY_ERRORS, random.Random(index)) for index in range(size)]
    responses = [
        [*backbone.front_end.tokenizer(caption, add_special_tokens=False)["input_ids"], backbone.eos_token_id]
        for caption in captions
    ]
    return model.encode([one.prompt for one in questions], images, responses)


def update_passes(rows: EncodedRows, ppo: PPOConfig, minibatches: int, seed: int) -> Iterator[Tensor]:
    """Row indices of each micro-batch of all epochs, as `PPOUpdater.update` draws them."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(ppo.epochs):
        for places in torch.tensor_split(torch.randperm(len(rows), generator=generator), minibatches):
            for chunk in cut_micro_batches(rows.select(places), ppo.micro_batch_size, ppo.micro_batch_tokens):
                yield places[chunk]
