"""Train a reward model per fact type on feedback/ and publish them as rewards/{existence,attribute,relation}.

Each is a LoRA adapter with a head over the frozen backbone of the configuration, with metrics.json and a
model card. A type that an interrupted run has finished is not trained again, the one it was at goes on after its last
epoch. `rewards.kind` trains other models for the same folders: one with a head per type, or one verdict per response.

Examples:
    fgaif train-rewards --config my.yaml
    fgaif train-rewards --config my.yaml --set rewards.kind=multitask
"""

import sys

from fgaif_ray.config import Config
from fgaif_ray.errors import UserError, find_user_error
from fgaif_ray.progress import say
from fgaif_ray.storage import join, read_json, stages, writes_run
from jobs.cli import ConfigOption, OverwriteOption, SetOption, main, read_config


@writes_run("train_rewards")
def run(config: Config) -> None:
    """Train what is not trained yet and publish the stage.

    Raises:
        UserError: feedback/ is missing; or, wrapped by Ray Train, it holds too few images, or the backbone is unusable.
    """
    stage = stages.rewards(config)
    if stage.is_complete():
        say(f"train_rewards: {stage.folder} is done")
        return

    from actors.cluster.connect import cluster_address, connect
    from actors.cluster.lost_nodes import is_loss
    from actors.rewards.trainer import MAX_FAILURES, train_reward_models
    from fgaif_ray.rewards.files import METRICS_FILE
    from fgaif_ray.vlm.checkpoint import check_vision_model

    if cluster_address(config) is None:
        check_vision_model(config.rewards.backbone, config.policy.allow_untested)
    stage.begin(overwrite=config.run.overwrite)
    with connect(config):
        try:
            train_reward_models(config, join(config.run.dir, stages.FEEDBACK), stage.partial)
        except Exception as error:
            if find_user_error(error) is None and is_loss(error):
                raise UserError(
                    f"Reward training lost workers or their nodes more than {MAX_FAILURES} times: see why in the "
                    "dashboard or with `ray list nodes`, then run the same command again, which goes on after the last "
                    "epoch."
                ) from error
            raise
    metrics = {name: read_json(join(stage.partial, name, METRICS_FILE)) for name in config.run.type_names}
    stage.publish({"balanced_accuracy": {name: found["balanced_accuracy"] for name, found in metrics.items()}})
    say(f"train_rewards: wrote {stage.folder}")


def command(config: ConfigOption, overrides: SetOption = None, overwrite: OverwriteOption = False) -> None:
    """What `fgaif train-rewards` does."""
    run(read_config(config, overrides, overwrite))


if __name__ == "__main__":
    sys.exit(main("train-rewards"))
