"""Sample the policy's own responses to the images (FGAIF section 4.1: T=1, top_p=1).

Reads the images of `data`, writes `responses/` into the run's folder: one row per image, with the sampled token ids.
Images that cannot be read are left out and named in `responses/rejected/`.
"""

import sys
import time
from collections import Counter
from typing import Final

import fsspec
import pyarrow.parquet as pq

from actors.sampler import REJECTED_FOLDER, REJECTED_IMAGES_SCHEMA, TASK_SCHEMA
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.progress import Progress, say
from fgaif_ray.records import RESPONSES_SCHEMA, fingerprint
from jobs.cli import find_user_error, main

STAGE: Final = "responses"
REJECTED_NAMED: Final = 20
"""Rejected images that the manifest names; all of them stand in the stage's ``rejected`` folder."""


def stage_of(config: Config, images: list[str]) -> storage.Stage:
    """The stage of these settings over these images; how engines are placed does not change what is sampled."""
    sample = config.sample.model_dump(include={"temperature", "top_p", "max_tokens"})
    policy = [config.policy.model, config.sample.engine.dtype]
    return storage.Stage(
        config.run.dir, STAGE, fingerprint("sample-1", config.run.seed, sample, policy, config.data.prompts, images)
    )


def run(config: Config) -> None:
    """Sample every image that has no response yet and publish ``responses/``.

    Raises:
        UserError: the images or the policy cannot be used, or no image could be read.
    """
    from fgaif_ray.sources import prepare_images

    started = time.monotonic()
    images = prepare_images(config).sample
    stage = stage_of(config, images)
    if stage.is_complete():
        say(f"sample: {stage.folder} is up to date.")
        return
    _sample_missing(config, stage, images)
    sampled = _drop_repeated(stage)
    rejected = list(storage.read_rows(_rejected(stage)))
    if sampled + len(rejected) != len(images):
        raise RuntimeError(f"{len(images)} images gave {sampled} responses and {len(rejected)} rejections")
    if not sampled:
        raise UserError(f"None of the {len(images)} images could be read; the first: {rejected[0]['reason']}.")
    reasons = Counter(row["finish_reason"] for row in storage.read_rows(stage.partial, ["finish_reason"]))
    stage.publish(
        {
            "rows": sampled,
            "rejected": len(rejected),
            "rejected_images": rejected[:REJECTED_NAMED],
            "finish_reasons": dict(reasons),
            "seconds": round(time.monotonic() - started, 1),
        }
    )
    say(f"sample: {sampled} responses, {len(rejected)} images rejected, in {stage.folder}.")


def _rejected(stage: storage.Stage) -> str:
    return storage.join(stage.partial, REJECTED_FOLDER)


def _sample_missing(config: Config, stage: storage.Stage, images: list[str]) -> None:
    from actors.chat import ImageChat
    from actors.cluster import connect

    stage.begin()
    done = {
        row["image"] for folder in (stage.partial, _rejected(stage)) for row in storage.read_rows(folder, ["image"])
    }
    prompts = config.data.prompts
    tasks = [
        {"image": image, "prompt": prompts[index % len(prompts)]}
        for index, image in enumerate(images)
        if image not in done
    ]
    if not tasks:
        return
    ImageChat(config.policy.model)  # a wrong model is better found before Ray and an engine are started for it
    with connect(config), Progress("sample", len(images), "responses", initial=len(done)) as progress:
        from actors.annotators import blocks_of, sample_responses

        blocks = blocks_of(tasks, config.sample.batch_size, TASK_SCHEMA)
        try:
            for counts in sample_responses(config, blocks, stage.partial):
                progress.advance(counts["sampled"] + counts["rejected"])
        except Exception as error:
            raise (find_user_error(error) or error) from error


def _drop_repeated(stage: storage.Stage) -> int:
    """Reject all but one of the images with the same bytes and prompt; returns the number of responses that stay."""
    first: dict[str, str] = {}
    for part in storage.list_parts(stage.partial):
        with fsspec.open(part, "rb") as file:
            rows = pq.read_table(file).to_pylist()
        kept, repeated = [], []
        for row in rows:
            image = first.setdefault(row["sample_id"], row["image"])
            if image == row["image"]:
                kept.append(row)
            else:
                repeated.append({"image": row["image"], "reason": f"the same image and prompt as {image}"})
        if repeated:
            name = part.rsplit("part-", 1)[-1].removesuffix(".parquet")
            storage.write_part(_rejected(stage), repeated, REJECTED_IMAGES_SCHEMA, f"{name}-repeated")
            storage.write_part(stage.partial, kept, RESPONSES_SCHEMA, name)
    return len(first)


if __name__ == "__main__":
    sys.exit(main("sample", __doc__, run))
