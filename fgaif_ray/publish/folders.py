"""The folders of a run's repositories, as they are uploaded."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.publish import cards
from fgaif_ray.publish.data_set import ImageMode, write_data_set
from fgaif_ray.publish.local_names import LocalNames
from fgaif_ray.publish.repositories import HubRepository
from fgaif_ray.rewards.files import ADAPTER_FILES as REWARD_FILES
from fgaif_ray.rewards.files import METRICS_FILE, published_reward_folders
from fgaif_ray.storage import stages
from fgaif_ray.vlm.checkpoint import ADAPTER_FILES

CARD_FILE: Final = "README.md"


@dataclass(frozen=True, slots=True)
class HubContent:
    """What is put into the repositories of a run.

    Example: ``HubContent(licence="apache-2.0", images="embed")``
    """

    licence: str
    """Identifier that the Hub knows, or ``other``."""
    images: ImageMode
    """Whether the data set holds the images' files or their names."""


def write_folders(config: Config, repositories: Sequence[HubRepository], folder: Path, content: HubContent) -> None:
    """Write a folder for each repository, named after its stage.

    Args:
        config: of the run.
        repositories: of its finished stages.
        folder: that is there and holds none of them.
        content: what is put in.

    Raises:
        UserError: a file of a stage is missing, or an image cannot be used.
    """
    names = LocalNames.of(config)
    card = cards.CardWriter(config, repositories, content.licence, names)
    for one in repositories:
        place = folder / one.stage
        place.mkdir()
        if one.stage == stages.POLICY:
            text = _write_policy(config, place, card, names)
        elif one.stage == stages.REWARDS:
            text = _write_rewards(config, place, card, names)
        else:
            counts = write_data_set(config, place, content.images, names)
            labels = storage.read_json(storage.join(config.run.dir, stages.FEEDBACK, METRICS_FILE))
            text = card.feedback(counts, labels, content.images)
        (place / CARD_FILE).write_text(text, encoding="utf-8")


def _write_policy(config: Config, place: Path, card: cards.CardWriter, names: LocalNames) -> str:
    source = storage.join(config.run.dir, stages.POLICY)
    for name in ADAPTER_FILES:
        _copy(storage.join(source, name), place / name, names)
    own = storage.join(source, CARD_FILE)
    trained = storage.read_bytes(own).decode() if storage.exists(own) else None
    return card.policy(trained, _optional(config, stages.EVALUATION, METRICS_FILE))


def _write_rewards(config: Config, place: Path, card: cards.CardWriter, names: LocalNames) -> str:
    metrics = {}
    for fact_type, source in published_reward_folders(config).items():
        target = place / fact_type
        target.mkdir()
        for name in REWARD_FILES:
            _copy(storage.join(source, name), target / name, names)
        for name in (METRICS_FILE, CARD_FILE):
            if storage.exists(storage.join(source, name)):
                _copy(storage.join(source, name), target / name, names)
        metrics[fact_type] = _optional(config, stages.REWARDS, fact_type, METRICS_FILE)
    return card.rewards(metrics)


def _copy(source: str, target: Path, names: LocalNames) -> None:
    """Copy a file; paths of this machine in a text are replaced."""
    if not storage.exists(source):
        raise UserError(f"{source} is missing: make that stage again.")
    if target.suffix in (".json", ".md"):
        target.write_text(names.hide(storage.read_bytes(source).decode()), encoding="utf-8")
        return
    with storage.open_binary(source) as read, target.open("wb") as written:
        shutil.copyfileobj(read, written)


def _optional(config: Config, *path: str) -> Mapping[str, Any]:
    uri = storage.join(config.run.dir, *path)
    found: Mapping[str, Any] = json.loads(storage.read_bytes(uri)) if storage.exists(uri) else {}
    return found
