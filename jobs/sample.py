"""Sample the policy's own responses to the images (FGAIF section 4.1: T=1, top_p=1).

Reads the images and prompts of `data`, writes `responses/` into the run's folder: `sample.samples_per_prompt` rows per
image and prompt, with the sampled token ids. Responses that come with the data are not sampled again but taken as they
are (their model is `given`). Images that cannot be read are left out and named in `responses/rejected/`.

Examples:
    fgaif sample --config configs/shapes.yaml
    fgaif sample --config my.yaml --set sample.max_tokens=256
"""

import sys
import time
from collections import Counter
from typing import Final

from actors.sampling.rows import REJECTED_FOLDER, RejectedImage
from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.progress import say, say_rejected
from fgaif_ray.records import PROVIDED
from fgaif_ray.storage import stages
from jobs.cli import ConfigOption, OverwriteOption, SetOption, main, read_config

REJECTED_NAMED: Final = 20
"""Rejected images that the manifest names; all of them stand in the stage's ``rejected`` folder."""


@storage.writes_run("sample")
def run(config: Config) -> None:
    """Sample every image that has no response yet and publish ``responses/``.

    Raises:
        UserError: the images or the policy cannot be used, or no image could be read.
    """
    from fgaif_ray.sources import prepare_images
    from fgaif_ray.vlm.checkpoint import check_vision_model

    started = time.monotonic()
    published = storage.read_manifest(config.run.dir, stages.RESPONSES) is not None
    if not published and config.data.source not in ("rows", "dataset"):
        check_vision_model(
            config.policy.model, config.policy.allow_untested
        )  # told before images are prepared; rows may bring their responses
    sets = prepare_images(config)
    stage = stages.responses(config, sets)
    if stage.is_complete():
        say(f"sample: {stage.folder} is up to date.")
        return

    from actors.sampling.run import drop_repeated, fill, rejected_folder

    stage.begin(overwrite=config.run.overwrite)
    asked = sum(1 for _ in sets.questions(sets.sample, config.data.prompts))
    total = sets.provided + asked * config.sample.samples_per_prompt
    fill(config, stage, sets, total)
    kept = drop_repeated(stage)
    rejected = missing = 0
    named: list[RejectedImage] = []
    for one in map(RejectedImage.from_row, storage.read_rows(rejected_folder(stage))):
        rejected += 1
        missing += one.responses
        if len(named) < REJECTED_NAMED:
            named.append(one)
    if kept + missing != total:
        raise RuntimeError(f"of {total} responses {kept} are there and {missing} rejected")
    if not kept:
        raise UserError(f"None of the {rejected} images could be used; the first: {named[0].reason}.")
    reasons: Counter[str] = Counter()
    for row in storage.read_rows(stage.partial, ["finish_reason", "model"]):
        reasons[PROVIDED if row["model"] == PROVIDED else row["finish_reason"]] += 1
    stage.publish(
        {
            "rows": kept,
            "rejected": missing,
            "rejected_images": [
                {name: value for name, value in one.to_row().items() if value is not None} for one in named
            ],
            "finish_reasons": dict(reasons),
            "seconds": round(time.monotonic() - started, 1),
        }
    )
    given = f" ({reasons[PROVIDED]} of them given)" if sets.provided else ""
    folder = storage.join(stage.folder, REJECTED_FOLDER)
    say_rejected("sample", ((one.image, one.reason) for one in named), rejected, folder)
    say(f"sample: {kept} responses{given}, {rejected} images rejected, in {stage.folder}.")


def command(config: ConfigOption, overrides: SetOption = None, overwrite: OverwriteOption = False) -> None:
    """What `fgaif sample` does."""
    run(read_config(config, overrides, overwrite))


if __name__ == "__main__":
    sys.exit(main("sample"))
