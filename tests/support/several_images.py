"""A policy that is asked about two images: what its engine reads and says, and what the learner makes of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import pyarrow as pa
import torch

from actors.engine.blocks import seal
from actors.engine.generate import generate
from actors.sampling import sampler
from actors.sampling.rows import TASK_SCHEMA
from fgaif_ray import storage
from fgaif_ray.config import LoRAOptions
from fgaif_ray.images import load_images
from fgaif_ray.records import Response
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.vlm.backbone import load_backbone
from support.engine_process import ENGINE
from support.families import build, photo
from support.sampling_runs import make_config

PROMPTS: Final = ("What differs?", "Is <image> like <image>?", "Where is it in <image>, and where in <image>?")
SIZES: Final = ((120, 90), (70, 140))
"""Of the two images: they take different numbers of tokens."""


@dataclass(frozen=True)
class Agreement:
    """What an engine and a learner make of the same responses."""

    responses: list[Response]
    same_ids: list[bool]
    """``[responses]``: whether both read the same prompt."""
    difference: float
    """Largest of a log-probability, nats."""
    effect: float
    """Largest difference that the order of the images makes in the learner, nats."""


def sample_and_compare(family: str, folder: Path) -> Agreement:
    """Sample a response to each of ``PROMPTS`` about two images, and compare.

    Args:
        family: key of ``support.families.FAMILIES``.
        folder: where checkpoint, images and responses go.
    """
    torch.set_num_threads(1)
    model = str(build(family, folder / "model"))
    images = [str(folder / f"{number}.png") for number in range(2)]
    for number, path in enumerate(images):
        photo(*SIZES[number], number).save(path)
    config = make_config(folder, folder / "run", model=model)
    data = config.data.model_copy(update={"images_per_prompt": 2})
    sample = config.sample.model_copy(update={"engine": ENGINE, "max_tokens": 12})
    config = config.model_copy(update={"data": data, "sample": sample})
    tasks = [{"image": images[0], "more_images": images[1:], "prompt": prompt} for prompt in PROMPTS]
    outputs: list[Any] = []

    def with_log_probs(engine: Any, prompts: Any, parameters: Any) -> Any:
        for one in parameters:
            one.logprobs = 0
        outputs.extend(generate(engine, prompts, parameters))
        return outputs

    with patch.object(sampler, "generate", with_log_probs):
        worker = sampler.Sampler(config, str(folder / "partial"))
        worker(seal(pa.Table.from_pylist(tasks, schema=TASK_SCHEMA)))
    responses = [Response.from_row(row) for row in storage.read_rows(str(folder / "partial"))]
    learner = PolicyModel(load_backbone(model, "float32"), LoRAOptions(rank=4, alpha=8))
    shown = [load_images(response.images) for response in responses]
    prompts, ids = [one.prompt for one in responses], [one.token_ids or () for one in responses]
    with torch.no_grad():
        rows = learner.encode(prompts, shown, ids)
        own = learner.log_probs(rows).log_probs
        swapped = learner.log_probs(learner.encode(prompts, [one[::-1] for one in shown], ids)).log_probs
    theirs = torch.zeros_like(own)
    for row, output in enumerate(outputs):
        completion = output.outputs[0]
        found = [entry[token].logprob for token, entry in zip(completion.token_ids, completion.logprobs, strict=True)]
        theirs[row, : len(found)] = torch.tensor(found)
    read = rows.input_ids.tolist()
    return Agreement(
        responses=responses,
        same_ids=[
            read[row][: int(rows.prompt_lengths[row])] == output.prompt_token_ids for row, output in enumerate(outputs)
        ],
        difference=float((own - theirs).abs().max()),
        effect=float((own - swapped).abs().max()),
    )
