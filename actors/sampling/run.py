"""Sampling into a begun stage: provided responses as they are, the others by the policy, and repeated rows rejected."""

from collections.abc import Iterator
from typing import Final

import pyarrow as pa

from actors.cluster.connect import connect
from actors.engine.blocks import blocks_of
from actors.sampling.provided import write_provided_blocks
from actors.sampling.rows import REJECTED_FOLDER, REJECTED_IMAGES_SCHEMA, TASK_SCHEMA, RejectedImage, SamplingTask
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import find_user_error
from fgaif_ray.progress import Progress
from fgaif_ray.records import MORE_IMAGES, PROVIDED, RESPONSES_SCHEMA, Response, image_fields
from fgaif_ray.sources import PROVIDED_SCHEMA, ImageSets, provided_responses
from fgaif_ray.vlm.front_end import load_front_end

GIVEN_PART: Final = "given-"
"""Start of the names of parts with given responses."""
GIVEN_BLOCK: Final = 128
"""Given responses of one part; fixed, so that a run that goes on cuts the same blocks."""


def rejected_folder(stage: storage.Stage) -> str:
    """Where rows are that could not be used, with the reason."""
    return storage.join(stage.partial, REJECTED_FOLDER)


def _sampled(stage: storage.Stage) -> set[SamplingTask]:
    """Tasks whose responses have been sampled, or whose image was rejected."""
    done: set[SamplingTask] = set()
    for folder in (stage.partial, rejected_folder(stage)):
        for part in storage.list_parts(folder):
            if not _name_of(part).startswith(GIVEN_PART):
                done.update(map(SamplingTask.from_row, storage.read_part(part, ["image", MORE_IMAGES.name, "prompt"])))
    return done


def _name_of(part: str) -> str:
    return part.rsplit("/part-", 1)[-1].removesuffix(".parquet")


def fill(config: Config, stage: storage.Stage, sets: ImageSets, total: int) -> None:
    """Add what the stage lacks: given responses as they are, others from the policy.

    Args:
        config: the configuration.
        stage: of the responses, begun.
        sets: the images.
        total: responses that the stage will have, and rejected rows.

    Raises:
        UserError: the policy cannot be used.
    """
    done = _sampled(stage)
    asked = (
        SamplingTask(**image_fields(images), prompt=prompt)
        for images, prompt in sets.questions(sets.sample, config.data.prompts)
    )
    each = config.sample.samples_per_prompt
    size = max(1, config.sample.batch_size // each)
    blocks = list(blocks_of((task for task in asked if task not in done), size, TASK_SCHEMA))
    copied = {_name_of(part) for part in storage.list_parts(stage.partial)}
    given_blocks = -(-sets.provided // GIVEN_BLOCK)
    missing = {name for name in map(_given_name, range(given_blocks)) if name not in copied}
    if not blocks and not missing:
        return
    if blocks:
        load_front_end(
            config.policy.model, config.data.chat_template_kwargs
        )  # a wrong model is better found before Ray and an engine are started for it
    initial = len(done) * each + max(0, sets.provided - len(missing) * GIVEN_BLOCK)
    with connect(config), Progress("sample", total, "responses", initial=initial) as progress:
        from actors.sampling.plan import sample_responses

        try:
            if missing:
                for counts in write_provided_blocks(_given_blocks(config, sets, missing), stage.partial, config.data):
                    progress.advance(counts.done + counts.rejected)
            if blocks:
                for counts in sample_responses(config, blocks, stage.partial):
                    progress.advance(counts.done + counts.rejected)
        except Exception as error:
            raise (find_user_error(error) or error) from error


def _given_name(index: int) -> str:
    return f"{GIVEN_PART}{index:06d}"


def _given_blocks(config: Config, sets: ImageSets, missing: set[str]) -> Iterator[tuple[str, pa.Table]]:
    """The named blocks of given responses that are not in the stage yet."""
    for index, block in enumerate(blocks_of(provided_responses(config, sets), GIVEN_BLOCK, PROVIDED_SCHEMA)):
        name = _given_name(index)
        if name in missing:
            yield name, block


def drop_repeated(stage: storage.Stage) -> int:
    """Reject all but one of the rows with the same bytes, prompt and, where it is given, response; returns the number
    of responses that stay.
    """
    first: dict[bytes, str] = {}
    for part in storage.list_parts(stage.partial):
        repeated: dict[int, str] = {}
        for index, row in enumerate(storage.read_part(part, ["sample_id", "image"])):
            identity = bytes.fromhex(row["sample_id"])
            if identity in first:
                repeated[index] = first[identity]
            else:
                first[identity] = row["image"]
        if not repeated:
            continue
        responses = [Response.from_row(row) for row in storage.read_part(part)]
        rejected = [_repeated(responses[index], image).to_row() for index, image in repeated.items()]
        kept = [response.to_row() for index, response in enumerate(responses) if index not in repeated]
        name = _name_of(part)
        storage.write_part(rejected_folder(stage), rejected, REJECTED_IMAGES_SCHEMA, f"{name}-repeated")
        storage.write_part(stage.partial, kept, RESPONSES_SCHEMA, name)
    return len(first)


def _repeated(response: Response, image: str) -> RejectedImage:
    """The rejection of a response that there is already, to an image of another name."""
    equal = "image and prompt and response" if response.model == PROVIDED else "image and prompt"
    fields = image_fields(response.images)
    return RejectedImage(**fields, prompt=response.prompt, reason=f"the same {equal} as {image}")
