"""Checks by reward models in this process, without Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fgaif_ray.check.questions import CheckResult, TextToCheck
from fgaif_ray.check.verdicts import check_response
from fgaif_ray.config import Config
from fgaif_ray.errors import ItemError, UserError
from fgaif_ray.fact_types import BUILT_IN, FactType
from fgaif_ray.pixel_budget import UNLIMITED, PixelBudget
from fgaif_ray.rewards.composition import RewardOptions
from fgaif_ray.rewards.files import (
    base_model,
    find_reward_folders,
    kind_of,
    published_reward_folders,
    read_folder,
    read_settings,
    read_trained_on,
    settings_of,
)
from fgaif_ray.rewards.model import RewardModel
from fgaif_ray.rewards.model_files import load_reward_model
from fgaif_ray.rewards.preparation import segment_response
from fgaif_ray.rewards.scoring import combined_version, compose_response, make_batch, score_batches
from fgaif_ray.serving.wire import TrainedOn
from fgaif_ray.vlm.backbone import load_backbone


@dataclass(frozen=True, slots=True)
class LocalChecker:
    """Reward models in this process."""

    model: RewardModel
    version: str
    """Of all of them."""
    fact_types: Mapping[str, FactType]
    """What is known of their types."""
    coarse: bool = False
    """Whether they judge whole responses."""
    budget: PixelBudget = UNLIMITED
    """Of an image."""
    trained_on: tuple[TrainedOn, ...] = ()

    def check_each(self, texts: Sequence[TextToCheck]) -> list[CheckResult]:
        """Check texts, in order."""
        types = self.model.fact_types
        options = RewardOptions(weights=dict.fromkeys(types, 1.0))
        tokenizer = self.model.backbone.front_end.tokenizer
        responses = [segment_response(tokenizer, text.response, None) for text in texts]
        rows = zip(texts, responses, strict=True)
        batch = make_batch([(text.images, text.prompt, response.segments) for text, response in rows])
        [outcomes] = score_batches(self.model, types, [batch], self.budget)
        results: list[CheckResult] = []
        for response, outcome in zip(responses, outcomes, strict=True):
            if isinstance(outcome, ItemError):
                results.append(outcome)
            else:
                distance = outcome.domain_distance
                scored = compose_response(
                    response, outcome.probabilities, None, options, self.version, domain_distance=distance
                )
                results.append(check_response(scored, self.fact_types, coarse=self.coarse, trained_on=self.trained_on))
        return results


def load_from_config(config: Config) -> LocalChecker:
    """Load the reward models of a run as its service has them.

    Raises:
        UserError: one has not been trained, or does not fit the backbone.
    """
    types = {one.name: one for one in config.run.types}
    return _load(published_reward_folders(config), config.rewards.backbone, settings_of(config), types)


def load_from_folder(path: str) -> LocalChecker:
    """Load reward models from their folder, with the settings that they were trained with.

    Args:
        path: folder or URI of a run, of its ``rewards/``, or of one reward model.

    Raises:
        UserError: it holds no reward model, or they are over different backbones or read images in different ways.
    """
    folders = find_reward_folders(path)
    readings = {name: (base_model(folder), read_settings(folder)) for name, folder in folders.items()}
    backbone, settings = next(iter(readings.values()))
    if other := [name for name, reading in readings.items() if reading != (backbone, settings)]:
        raise UserError(
            f"The reward models in {path} do not read images with one backbone and one set of settings ({other[0]} "
            "differs): give the folder of one of them, or use --config."
        )
    return _load(folders, backbone, settings, BUILT_IN)


def _load(
    folders: Mapping[str, str], backbone: str, settings: Mapping[str, Any], fact_types: Mapping[str, FactType]
) -> LocalChecker:
    files = {name: read_folder(folder) for name, folder in folders.items()}
    scaled = bool(settings["temperature_scaling"])
    loaded = load_backbone(backbone, settings["dtype"], settings["quantisation"], settings["chat_template_kwargs"])
    loaded.move_to("cuda" if torch.cuda.is_available() else "cpu")
    return LocalChecker(
        model=load_reward_model(loaded, folders, temperature_scaling=scaled),
        version=combined_version({name: found.served_version(scaled) for name, found in files.items()}),
        fact_types=fact_types,
        coarse=kind_of(files) == "coarse",
        budget=PixelBudget(settings["min_pixels"], settings["max_pixels"]),
        trained_on=tuple(dict.fromkeys(filter(None, map(read_trained_on, folders.values())))),
    )
