"""Align the policy with PPO on the dense rewards of the reward models, and publish `policy/`.

`policy/` holds the PEFT adapter with its card, `metrics.jsonl` (a line per step), `samples.jsonl` (responses with their
segments, verdicts and rewards) and `tensorboard/`. An interrupted run goes on from its last checkpoint.
`fgaif export merged FOLDER` writes the aligned model, adapter merged in, as a checkpoint of its own.

Examples:
    fgaif align --config my.yaml
    fgaif align --config my.yaml --set align.steps=60
"""

import sys
import time

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.progress import say
from fgaif_ray.rewards.files import published_reward_folders, published_versions
from fgaif_ray.storage import stages
from jobs.cli import ConfigOption, OverwriteOption, SetOption, main, read_config


@storage.writes_run("align")
def run(config: Config) -> None:
    """Run PPO and publish ``policy/``; its reward service and rollout workers live no longer than that.

    A reward service that runs already with the same models is used, and stays.

    Raises:
        UserError: the reward models are missing, the critic cannot start from the wanted one, or the run was stopped
            (by a guard, say); the message holds the reason, and checkpoints stay in ``policy.partial``.
    """
    from actors.cluster.connect import cluster_address, connect
    from fgaif_ray.sources import prepare_images
    from fgaif_ray.vlm.checkpoint import check_vision_model

    started = time.monotonic()
    published_reward_folders(config)  # what is missing is told before images are prepared
    if storage.read_manifest(config.run.dir, stages.POLICY) is None:
        check_vision_model(config.policy.model, config.policy.allow_untested)
        if cluster_address(config) is None:
            check_vision_model(config.rewards.backbone, config.policy.allow_untested)
    sets = prepare_images(config)
    if not sets.align:
        raise UserError("No images are left for PPO: give more images, or lower data.sample_images.")
    stage = stages.policy(config, sets, published_versions(config))
    if stage.is_complete():
        say(f"align: {stage.folder} is up to date.")
        return

    from actors.alignment.run import askable_prompts, publish_policy, reward_app, train_policy
    from actors.cluster.connect import cluster_address
    from fgaif_ray.rl.trackers import require_packages
    from fgaif_ray.vlm.front_end import load_front_end

    require_packages(config.align.tracking)
    asked = askable_prompts(sets, config.data)
    front_end = load_front_end(config.policy.model, config.data.chat_template_kwargs)
    with_counts = ((prompt, len(images)) for images, prompts in asked.items() for prompt in prompts)
    front_end.check_prompts(with_counts, config.align.rollout.engine.max_model_len)
    stage.begin(overwrite=config.run.overwrite)
    with connect(config), reward_app(config) as app_name:
        steps, done_before = train_policy(config, stage, asked, app_name, front_end.banned_token_ids)
    goodput = publish_policy(config, stage, steps, done_before, time.monotonic() - started)
    name = config.align.algorithm.upper()
    say(f"align: {steps} steps of {name}, the aligned policy's adapter is in {stage.folder}. Goodput {goodput:.0%}.")


def command(config: ConfigOption, overrides: SetOption = None, overwrite: OverwriteOption = False) -> None:
    """What `fgaif align` does."""
    run(read_config(config, overrides, overwrite))


if __name__ == "__main__":
    sys.exit(main("align"))
