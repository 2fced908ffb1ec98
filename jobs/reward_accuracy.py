"""Hold the reward models of a run against the truth of the evaluation's images, where it is known.

Reads `rewards/` and `evaluation/` (the responses sampled before and after alignment), writes `reward-accuracy.json`:
balanced accuracy and confusion by fact type. The reward models' own metrics are about the labels they were trained on,
with their mistakes; these are not. Accuracy that is lost after alignment tells what the policy gets away with.
"""

import sys

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.experiments.metrics import REWARD_ACCURACY_FILE
from fgaif_ray.progress import say
from fgaif_ray.records import fingerprint
from fgaif_ray.storage import stages
from jobs.cli import main


def accuracy_key(config: Config) -> str:
    """Equal where the same reward models judge the same responses.

    Raises:
        UserError: there are no reward models, or no evaluation.
    """
    rewards = stages.require(config.run.dir, stages.REWARDS)
    evaluation = stages.require(config.run.dir, stages.EVALUATION)
    return fingerprint("reward-accuracy-2", rewards["fingerprint"], evaluation["fingerprint"])


def is_measured(run_dir: str, key: str) -> bool:
    """Whether a run has these very figures."""
    uri = storage.join(run_dir, REWARD_ACCURACY_FILE)
    return storage.exists(uri) and storage.read_json(uri)["key"] == key


@storage.writes_run("reward_accuracy")
def run(config: Config) -> None:
    """Score and compare, unless that is done.

    Raises:
        UserError: a stage is missing, or the truth of the images is not known.
    """
    from fgaif_ray.errors import UserError
    from fgaif_ray.experiments.truth import reward_accuracy
    from fgaif_ray.rewards.files import read_folder
    from fgaif_ray.rewards.model import load_reward_model
    from fgaif_ray.sources import load_truth
    from fgaif_ray.vlm.backbone import load_backbone

    run_dir, rewards = config.run.dir, config.rewards
    key = accuracy_key(config)
    if is_measured(run_dir, key):
        say("reward_accuracy: up to date.")
        return
    truth = load_truth(config)
    if truth is None:
        raise UserError("The truth of these images is not known: only data.source=shapes has one.")
    folders = stages.reward_folders(config)
    coarse = read_folder(folders[config.run.type_names[0]]).granularity == "response"
    backbone = load_backbone(rewards.backbone, rewards.dtype, rewards.quantisation)
    model = load_reward_model(backbone, folders)
    rows = storage.read_rows(storage.join(run_dir, stages.EVALUATION))
    figures = reward_accuracy(rows, truth, model, coarse, config.run.type_names)
    storage.write_json(storage.join(run_dir, REWARD_ACCURACY_FILE), {"key": key, **figures})
    for which, by_kind in figures.items():
        for kind, found in by_kind.items():
            value = found["balanced_accuracy"]
            share = "-" if value is None else f"{value:.3f}"
            say(f"reward_accuracy: {which} alignment, {kind} {share} of {found['count']} verdicts")


if __name__ == "__main__":
    sys.exit(main("reward_accuracy", __doc__, run))
