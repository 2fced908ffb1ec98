"""Provided responses, which enter the stage of responses as they are, without an engine."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pyarrow as pa
import ray

from actors import metrics
from actors.engine.block_counts import BlockCounts
from actors.sampling.rows import REJECTED_FOLDER, REJECTED_IMAGES_SCHEMA, RejectedImage
from fgaif_ray import storage
from fgaif_ray.config import DataConfig
from fgaif_ray.images import decode_image, read_image_file
from fgaif_ray.records import PROVIDED, RESPONSES_SCHEMA, Response, image_fields, images_digest, sample_identity
from fgaif_ray.sources import ProvidedResponse

BLOCKS_PER_CPU: Final = 2
"""Blocks under way at a time; more would only wait in memory."""


def write_provided(rows: pa.Table, partial: str, name: str, data: DataConfig) -> BlockCounts:
    """Write a block of provided responses as a part of the stage, those whose images cannot be shown as rejected.

    The part comes last, and comes even where all rows are rejected: a block is done when its part is there.

    Args:
        rows: a table of ``sources.PROVIDED_SCHEMA``.
        partial: folder that gets the parts.
        name: of the part.
        data: how many images a prompt may have.
    """
    kept: list[Response] = []
    rejected: list[RejectedImage] = []
    for given in map(ProvidedResponse.from_row, rows.to_pylist()):
        try:
            data.check_prompt(given.prompt, len(given.images))
            kept.append(_response(given))
        except (OSError, ValueError) as error:
            fields = image_fields(given.images)
            rejected.append(RejectedImage(**fields, prompt=given.prompt, reason=str(error)))
    if rejected:
        folder = storage.join(partial, REJECTED_FOLDER)
        storage.write_part(folder, [one.to_row() for one in rejected], REJECTED_IMAGES_SCHEMA, name)
    storage.write_part(partial, [response.to_row() for response in kept], RESPONSES_SCHEMA, name)
    metrics.SAMPLED_RESPONSES.inc(len(kept), outcome="given")
    metrics.SAMPLED_RESPONSES.inc(len(rejected), outcome="rejected")
    return BlockCounts(done=len(kept), rejected=len(rejected))


def _response(given: ProvidedResponse) -> Response:
    """The row of a provided response.

    Raises:
        OSError or ValueError: an image cannot be read.
    """
    digests = []
    for image in given.images:
        data = read_image_file(image)
        decode_image(data)
        digests.append(hashlib.sha256(data).hexdigest())
    digest = images_digest(digests)
    answer = {"response": given.text}  # takes the place of the sampling settings, which are unknown
    return Response(
        sample_id=sample_identity(digest, given.prompt, PROVIDED, answer),
        **image_fields(given.images),
        image_sha256=digest,
        prompt=given.prompt,
        text=given.text,
        model=PROVIDED,
    )


def write_provided_blocks(
    blocks: Iterable[tuple[str, pa.Table]], partial: str, data: DataConfig
) -> Iterator[BlockCounts]:
    """Write named blocks on the cluster; yields the counts of each finished block (see ``write_provided``).

    Blocks are taken as workers become free, so that few of them are in memory at a time.
    """
    write: Any = ray.remote(write_provided)
    limit = BLOCKS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: list[Any] = []
    for name, rows in blocks:
        if len(waiting) == limit:
            [done], waiting = ray.wait(waiting, num_returns=1)
            yield ray.get(done)
        waiting.append(write.remote(rows, partial, name, data))
    yield from map(ray.get, waiting)
