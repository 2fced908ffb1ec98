"""Learner and rollout engines compared: once before anything is learnt, and the prompts of every batch."""

from collections.abc import Sequence

import torch

from actors.alignment.experience import ExperienceSource
from actors.alignment.policy_versions import PolicyVersions
from actors.alignment.rollout import Rollout
from fgaif_ray.rl.guards import TrainingStopped
from fgaif_ray.rl.plan import Draw
from fgaif_ray.rl.policy import EncodedRows, PolicyModel
from fgaif_ray.rl.self_check import EngineAgreement, compare, disturbed
from fgaif_ray.vlm.group import LearnerGroup
from fgaif_ray.vlm.probes import SelfCheckError
from fgaif_ray.vlm.prompt_check import first_difference, row_name


def self_check(
    model: PolicyModel,
    source: ExperienceSource,
    versions: PolicyVersions,
    draws: Sequence[Draw],
    tolerance: float,
    group: LearnerGroup,
) -> None:
    """Compare log-probabilities of engines and learner under a random adapter; the policy is as before afterwards.

    Args:
        model: of this learner process.
        source: has the rollout workers.
        versions: gets a version for the time of the check.
        draws: a few images and prompts of this process, to which the engines respond.
        tolerance: largest mean difference, nats.
        group: all processes, each of which calls this.

    Raises:
        TrainingStopped: in every process, where they do not agree.
        UserError: none of the images can be read.
    """
    with disturbed(model), versions.probe(model, group.rank == 0) as version:
        group.barrier()
        kept, images, rollouts = source.probe(draws, version)
        prompts, responses = [draw.prompt for draw in kept], [one.token_ids for one in rollouts]
        check_prompts(model.backbone.path, kept, rollouts, model.encode(prompts, images, responses), group)
        found = compare(model, images, responses, [one.log_probs for one in rollouts], prompts)
        metrics = torch.tensor([found.difference, found.largest, found.effect, found.without_adapter])
        everywhere = EngineAgreement(*(group.sum(metrics).cpu() / group.size).tolist())
    try:
        everywhere.check(tolerance, adapted=True)
    except SelfCheckError as error:
        raise TrainingStopped(f"self-check of {model.backbone.path}: {error}") from error


def check_prompts(
    path: str, draws: Sequence[Draw], rollouts: Sequence[Rollout], rows: EncodedRows, group: LearnerGroup
) -> None:
    """Compare the ids that the engines read with those of the learner's processor.

    Nothing learnt from a response to another prompt would be right.

    Args:
        path: of the model.
        draws: of this process.
        rollouts: of the draws.
        rows: the same responses as the learner reads them.
        group: all processes, each of which calls this.

    Raises:
        TrainingStopped: in every process, where they differ in any.
    """
    ids, lengths = rows.input_ids.tolist(), rows.prompt_lengths.tolist()
    positions = [
        first_difference(ids[row][:length], rollout.prompt_token_ids)
        for row, (rollout, length) in enumerate(zip(rollouts, lengths, strict=True))
    ]
    different = [(draw, position) for draw, position in zip(draws, positions, strict=True) if position is not None]
    if int(group.sum(torch.tensor(len(different)))):
        which = "a row of another process"
        if different:
            draw, position = different[0]
            which = f"{row_name(draw.prompt, draw.images)}, from position {position} on"
        raise TrainingStopped(
            f"prompt mismatch: the rollout engine and the learner read {which}, as different token ids: run `fgaif "
            f"check-model {path}`, which says what to do"
        )
