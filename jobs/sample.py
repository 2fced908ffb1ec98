"""Sample the policy's own responses to the images (FGAIF section 4.1: T=1, top_p=1).

Reads the images and prompts of `data`, writes `responses/` into the run's folder: one row per image and prompt, with
the sampled token ids. Responses that come with the data are not sampled again but taken as they are (their model is
`given`). Images that cannot be read are left out and named in `responses/rejected/`.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from actors.sampling.sampler import REJECTED_FOLDER, REJECTED_IMAGES_SCHEMA, TASK_SCHEMA
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.progress import Progress, say, say_rejected
from fgaif_ray.records import PROVIDED, RESPONSES_SCHEMA
from fgaif_ray.storage import stages
from fgaif_ray.vlm.front_end import load_front_end
from jobs.cli import find_user_error, main
from jobs.plan import plan_mode

if TYPE_CHECKING:
    from fgaif_ray.sources import ImageSets

REJECTED_NAMED: Final = 20
"""Rejected images that the manifest names; all of them stand in the stage's ``rejected`` folder."""
GIVEN_PART: Final = "given-"
"""Start of the names of parts with given responses."""
GIVEN_BLOCK: Final = 128
"""Given responses of one part; fixed, so that a run that goes on cuts the same blocks."""


@storage.writes_run("sample")
def run(config: Config) -> None:
    """Sample every image that has no response yet and publish ``responses/``.

    Raises:
        UserError: the images or the policy cannot be used, or no image could be read.
    """
    from fgaif_ray.sources import prepare_images
    from fgaif_ray.vlm.checkpoint import check_checkpoint

    started = time.monotonic()
    if storage.read_manifest(config.run.dir, stages.RESPONSES) is None and config.data.source not in (
        "rows",
        "dataset",
    ):
        check_checkpoint(config.policy.model)  # told before images are prepared; rows may bring their responses
    sets = prepare_images(config)
    stage = stages.responses(config, sets)
    if stage.is_complete():
        say(f"sample: {stage.folder} is up to date.")
        return
    stage.begin(overwrite=config.run.overwrite)
    total = sets.provided + sum(1 for _ in sets.questions(sets.sample, config.data.prompts))
    _fill(config, stage, sets, total)
    kept = _drop_repeated(stage)
    rejected = 0
    named: list[dict[str, Any]] = []
    for row in storage.read_rows(_rejected(stage)):
        rejected += 1
        if len(named) < REJECTED_NAMED:
            named.append(row)
    if kept + rejected != total:
        raise RuntimeError(f"{total} images and prompts gave {kept} responses and {rejected} rejections")
    if not kept:
        raise UserError(f"None of the {total} images could be used; the first: {named[0]['reason']}.")
    reasons: Counter[str] = Counter()
    for row in storage.read_rows(stage.partial, ["finish_reason", "model"]):
        reasons[PROVIDED if row["model"] == PROVIDED else row["finish_reason"]] += 1
    stage.publish(
        {
            "rows": kept,
            "rejected": rejected,
            "rejected_images": named,
            "finish_reasons": dict(reasons),
            "seconds": round(time.monotonic() - started, 1),
        }
    )
    given = f" ({reasons[PROVIDED]} of them given)" if sets.provided else ""
    folder = storage.join(stage.folder, REJECTED_FOLDER)
    say_rejected("sample", named, rejected, folder)
    say(f"sample: {kept} responses{given}, {rejected} images rejected, in {stage.folder}.")


def _rejected(stage: storage.Stage) -> str:
    return storage.join(stage.partial, REJECTED_FOLDER)


def _blocks(rows: Iterable[dict[str, Any]], size: int, schema: pa.Schema) -> Iterator[pa.Table]:
    iterator = iter(rows)
    while block := list(islice(iterator, size)):
        yield pa.Table.from_pylist(block, schema=schema)


def _sampled(stage: storage.Stage) -> set[tuple[str, str]]:
    """Images and prompts that have been sampled, or rejected."""
    done: set[tuple[str, str]] = set()
    for folder in (stage.partial, _rejected(stage)):
        for part in storage.list_parts(folder):
            if not _name_of(part).startswith(GIVEN_PART):
                done.update((row["image"], row["prompt"]) for row in storage.read_part(part, ["image", "prompt"]))
    return done


def _name_of(part: str) -> str:
    return part.rsplit("/part-", 1)[-1].removesuffix(".parquet")


def _fill(config: Config, stage: storage.Stage, sets: "ImageSets", total: int) -> None:
    """Add what the stage lacks: given responses as they are, others from the policy."""
    from actors.cluster.connect import connect

    done = _sampled(stage)
    asked = sets.questions(sets.sample, config.data.prompts)
    tasks = _blocks(
        ({"image": image, "prompt": prompt} for image, prompt in asked if (image, prompt) not in done),
        config.sample.batch_size,
        TASK_SCHEMA,
    )
    blocks = list(tasks)
    copied = {_name_of(part) for part in storage.list_parts(stage.partial)}
    given_blocks = -(-sets.provided // GIVEN_BLOCK)
    missing = {name for name in map(_given_name, range(given_blocks)) if name not in copied}
    if not blocks and not missing:
        return
    if blocks:
        load_front_end(config.policy.model)  # a wrong model is better found before Ray and an engine are started for it
    initial = len(done) + max(0, sets.provided - len(missing) * GIVEN_BLOCK)
    with connect(config), Progress("sample", total, "responses", initial=initial) as progress:
        from actors.sampling.plan import sample_responses
        from actors.sampling.provided import write_provided_blocks

        try:
            if missing:
                for counts in write_provided_blocks(_given_blocks(config, sets, missing), stage.partial):
                    progress.advance(counts["kept"] + counts["rejected"])
            if blocks:
                for counts in sample_responses(config, blocks, stage.partial):
                    progress.advance(counts["sampled"] + counts["rejected"])
        except Exception as error:
            raise (find_user_error(error) or error) from error


def _given_name(index: int) -> str:
    return f"{GIVEN_PART}{index:06d}"


def _given_blocks(config: Config, sets: "ImageSets", missing: set[str]) -> Iterator[tuple[str, pa.Table]]:
    """The named blocks of given responses that are not in the stage yet."""
    from actors.sampling.provided import PROVIDED_SCHEMA
    from fgaif_ray.sources import provided_responses

    for index, block in enumerate(_blocks(provided_responses(config, sets), GIVEN_BLOCK, PROVIDED_SCHEMA)):
        name = _given_name(index)
        if name in missing:
            yield name, block


def _drop_repeated(stage: storage.Stage) -> int:
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
        rows = storage.read_part(part)
        rejected = [
            {
                "image": rows[index]["image"],
                "prompt": rows[index]["prompt"],
                "reason": f"the same image and prompt{' and response' * (rows[index]['model'] == PROVIDED)} as {image}",
            }
            for index, image in repeated.items()
        ]
        kept = [row for index, row in enumerate(rows) if index not in repeated]
        name = _name_of(part)
        storage.write_part(_rejected(stage), rejected, REJECTED_IMAGES_SCHEMA, f"{name}-repeated")
        storage.write_part(stage.partial, kept, RESPONSES_SCHEMA, name)
    return len(first)


if __name__ == "__main__":
    sys.exit(main("sample", __doc__, run, modes=(plan_mode("sample"),)))
