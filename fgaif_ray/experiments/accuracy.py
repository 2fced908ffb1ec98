"""How right a run's reward models are about responses whose truth is known."""

from typing import Any

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.evaluation.rows import EvaluationAnswer
from fgaif_ray.experiments.metrics import REWARD_ACCURACY_FILE
from fgaif_ray.records import fingerprint
from fgaif_ray.storage import stages


def accuracy_key(config: Config) -> str:
    """Equal where the same reward models judge the same responses.

    Raises:
        UserError: there are no reward models, or no evaluation.
    """
    rewards = stages.require(config.run.dir, stages.REWARDS)
    evaluation = stages.require(config.run.dir, stages.EVALUATION)
    return fingerprint("reward-accuracy-2", rewards["fingerprint"], evaluation["fingerprint"])


def is_measured(run_dir: str, key: str) -> bool:
    """Whether a run has these very metrics."""
    uri = storage.join(run_dir, REWARD_ACCURACY_FILE)
    return storage.exists(uri) and storage.read_json(uri)["key"] == key


def measure_accuracy(config: Config) -> dict[str, Any]:
    """Have the reward models judge the responses of the evaluation, and write what that shows.

    Returns:
        ``before`` and ``after`` alignment: balanced accuracy and confusion by fact type.

    Raises:
        UserError: a stage is missing, or the truth of the images is not known.
    """
    from fgaif_ray.blind import blindfold
    from fgaif_ray.experiments.truth import reward_accuracy
    from fgaif_ray.rewards.files import read_folder
    from fgaif_ray.rewards.model_files import load_reward_model
    from fgaif_ray.sources import load_truth
    from fgaif_ray.vlm.backbone import load_backbone

    run_dir, rewards = config.run.dir, config.rewards
    key = accuracy_key(config)
    truth = load_truth(config)
    if truth is None:
        raise UserError("The truth of these images is not known: only data.source=shapes has one.")
    folders = stages.reward_folders(config)
    coarse = read_folder(folders[config.run.type_names[0]]).granularity == "response"
    backbone = load_backbone(rewards.backbone, rewards.dtype, rewards.quantisation, config.data.chat_template_kwargs)
    model = load_reward_model(backbone, folders)
    answers = list(map(EvaluationAnswer.from_row, storage.read_rows(storage.join(run_dir, stages.EVALUATION))))
    blind = blindfold(config, "rewards", [one.question.images for one in answers])
    figures = reward_accuracy(
        answers, truth, model, coarse, config.run.type_names, config.data.pixel_budget, blind.shown
    )
    storage.write_json(storage.join(run_dir, REWARD_ACCURACY_FILE), {"key": key, **figures})
    return figures
