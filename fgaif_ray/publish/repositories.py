"""The repositories of a run: their names, their kinds, and the stages that fill them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.storage import stages

RepoType = Literal["model", "dataset"]


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository of the Hub and the stage that it is made of.

    Example: ``HubRepository("me/shapes-rewards", "model", "rewards")``
    """

    name: str
    """With its owner, or without for the owner of the token."""
    repo_type: RepoType
    stage: str
    """Also the name of its folder."""


SUFFIXES: Final = (
    (stages.POLICY, "", "model"),
    (stages.REWARDS, "-rewards", "model"),
    (stages.FEEDBACK, "-feedback", "dataset"),
)
"""Stage, what its repository's name has after that of the run, type; those that others point to come last."""


def repositories_of(name: str) -> list[HubRepository]:
    """The repositories under a name.

    Raises:
        UserError: the Hub would refuse the name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # it does not list what it offers

    found = [HubRepository(f"{name}{suffix}", kind, stage) for stage, suffix, kind in SUFFIXES]  # type: ignore[arg-type]
    for one in found:
        try:
            validate_repo_id(one.name)
        except HFValidationError as error:
            raise UserError(f"--repo {name}: {one.name} cannot be the name of a repository: {error}") from error
    return found


def finished_repositories(config: Config, name: str) -> list[HubRepository]:
    """The repositories whose stages the run has finished.

    Raises:
        UserError: the name is refused, or there is none.
    """
    found = [one for one in repositories_of(name) if is_finished(config, one.stage)]
    if not found:
        raise UserError(f"{config.run.dir} holds neither a policy nor rewards nor feedback: run a pipeline first.")
    return found


def is_finished(config: Config, stage: str) -> bool:
    """Whether a stage has been published."""
    return storage.read_manifest(config.run.dir, stage) is not None


def name_of_stage(repositories: Sequence[HubRepository], stage: str) -> str | None:
    """The repository of a stage; None where it is not published."""
    return next((one.name for one in repositories if one.stage == stage), None)
