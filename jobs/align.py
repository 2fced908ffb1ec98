"""Align the policy on the dense rewards of the reward models, or on preferences, and publish `policy/`.

`align.algorithm` says how. `ppo`, `grpo` and `rloo` sample responses and have them rewarded. `dpo` and `c-dpo` learn
from pairs of the labelled responses in `feedback/`, without reward models.

`policy/` holds the PEFT adapter with its card, `metrics.jsonl` (a line per step), `samples.jsonl` (responses with their
segments, verdicts and rewards) and `tensorboard/`. Where `align.best_by` has chosen the adapter, the last one is in
`last/`. An interrupted run goes on from its last checkpoint.
`fgaif export merged FOLDER` writes the aligned model, adapter merged in, as a checkpoint of its own.

Examples:
    fgaif align --config my.yaml
    fgaif align --config my.yaml --set align.steps=60
    fgaif align --config my.yaml --set align.algorithm=c-dpo
"""

import sys
import time
from typing import TYPE_CHECKING

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.progress import say
from fgaif_ray.rewards.files import published_reward_folders, published_versions
from fgaif_ray.storage import stages
from jobs.cli import ConfigOption, OverwriteOption, SetOption, main, read_config

if TYPE_CHECKING:
    from actors.alignment.run import TrainedPolicy


@storage.writes_run("align")
def run(config: Config) -> None:
    """Align and publish ``policy/``; reward service and rollout workers, where there are any, live no longer than that.

    A reward service that runs already with the same models is used, and stays.

    Raises:
        UserError: what is learnt from is missing, the critic cannot start from the wanted one, or the run was stopped
            (by a guard, say); the message holds the reason, and checkpoints stay in ``policy.partial``.
    """
    if config.align.learns_from_preferences:
        _run_on_preferences(config)
    else:
        _run_on_rewards(config)


def _run_on_preferences(config: Config) -> None:
    from fgaif_ray.preferences.pair import FORM_OF
    from fgaif_ray.preferences.pairs import load_pairs
    from fgaif_ray.rl.trackers import require_packages
    from fgaif_ray.vlm.checkpoint import check_vision_model

    started = time.monotonic()
    stage = stages.policy_of_preferences(config)
    if stage.is_complete():
        say(f"align: {stage.folder} is up to date.")
        return
    check_vision_model(config.policy.model, config.policy.allow_untested)
    require_packages(config.align.tracking)
    pairs = load_pairs(config, FORM_OF[config.align.algorithm])  # what is missing is told before Ray starts
    say(f"align: {len(pairs)} pairs of {len({(pair.images, pair.prompt) for pair in pairs})} prompts.")

    from actors.alignment.run import train_on_preferences
    from actors.cluster.connect import connect

    stage.begin(overwrite=config.run.overwrite)
    with connect(config):
        trained = train_on_preferences(config, stage)
    _publish(config, stage, trained, started)


def _run_on_rewards(config: Config) -> None:
    from actors.cluster.connect import cluster_address, connect
    from fgaif_ray.sources import load_truth, prepare_images
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

    from actors.alignment.run import askable_prompts, hold_out, reward_app, train_policy
    from actors.cluster.connect import cluster_address
    from fgaif_ray.rl.trackers import require_packages
    from fgaif_ray.vlm.front_end import load_front_end

    require_packages(config.align.tracking)
    asked = askable_prompts(sets, config.data)
    front_end = load_front_end(config.policy.model, config.data.chat_template_kwargs)
    with_counts = ((prompt, len(images)) for images, prompts in asked.items() for prompt in prompts)
    front_end.check_prompts(with_counts, config.align.rollout.engine.max_model_len)
    learnt, evaluation = hold_out(asked, config.align)
    truth = load_truth(config) if evaluation else None
    stage.begin(overwrite=config.run.overwrite)
    with connect(config), reward_app(config) as app_name:
        banned = front_end.banned_token_ids
        trained = train_policy(config, stage, learnt, app_name, banned, evaluation, truth)
    _publish(config, stage, trained, started)


def _publish(config: Config, stage: storage.Stage, trained: "TrainedPolicy", started: float) -> None:
    from actors.alignment.run import publish_policy

    goodput = publish_policy(config, stage, trained, time.monotonic() - started)
    which = ""
    if trained.best is not None:
        which = f", that of step {trained.best['step']} ({trained.best['metric']} {trained.best['value']:.3g})"
    elif config.align.best_by is not None:
        which = ", the last one, since no evaluation has said enough (align.best_min_facts_share)"
    name = config.align.algorithm.upper()
    done = f"{trained.steps} steps of {name}, the aligned policy's adapter is in {stage.folder}{which}"
    say(f"align: {done}. Goodput {goodput:.0%}.")


def command(config: ConfigOption, overrides: SetOption = None, overwrite: OverwriteOption = False) -> None:
    """What `fgaif align` does."""
    run(read_config(config, overrides, overwrite))


if __name__ == "__main__":
    sys.exit(main("align"))
