"""The learner of `dpo` and `c-dpo`, which each Ray Train worker runs.

    feedback/ -> pairs -> token ids --+
    images -> features ---------------+--> policy, reference --> loss -> optimiser step --> checkpoint, log

Nothing is sampled and no reward is asked for. All workers make the same pairs of the same folder; of each step every
worker takes its share.
"""

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image

from actors.alignment import metrics as exported
from actors.alignment.process import LearnerProcess
from actors.alignment.tasks import PreferenceTask
from actors.cluster.device import worker_device
from fgaif_ray.blind import blindfold
from fgaif_ray.errors import UserError
from fgaif_ray.images import open_images
from fgaif_ray.preferences.draws import PairPlan, share_of
from fgaif_ray.preferences.encoding import EncodedPair, encode_pairs
from fgaif_ray.preferences.pair import FORM_OF
from fgaif_ray.preferences.pairs import load_pairs
from fgaif_ray.preferences.step import DPOUpdater
from fgaif_ray.rl.checkpoint import LearnerState
from fgaif_ray.rl.guards import TrainingGuards, TrainingStopped
from fgaif_ray.rl.kl import FixedKLController
from fgaif_ray.rl.policy import PolicyModel
from fgaif_ray.vlm.backbone import load_backbone
from fgaif_ray.vlm.group import LearnerGroup

logger = logging.getLogger(__name__)


def train(task: PreferenceTask) -> dict[str, Any]:
    """Learn to the last step, in a worker of Ray Train.

    Returns:
        ``{"steps": updates done, "stopped": None or why the run was ended before its last step}``. What cannot be
        repaired by going on ends the run this way; other errors are raised, and Ray Train resumes from the checkpoint.
    """
    try:
        learner = PreferenceLearner(task)
    except UserError as error:  # about models, pairs or trackers: on every rank, and the same at the next try
        return {"steps": 0, "stopped": str(error)}
    try:
        learner.run()
    except TrainingStopped as error:  # every rank comes to the same end
        learner.record_stop(str(error))
        return {"steps": learner.step, "stopped": str(error)}
    finally:
        learner.close()
    return {"steps": learner.step, "stopped": None}


class PreferenceLearner(LearnerProcess[DPOUpdater]):
    """A process that learns from preferences."""

    def __init__(self, task: PreferenceTask) -> None:
        """Loads the policy and makes the pairs.

        Raises:
            UserError: there is no pair that the policy can learn from.
        """
        config = task.config
        align = config.align
        if align.threads is not None:
            torch.set_num_threads(align.threads)
        pairs = load_pairs(config, FORM_OF[align.algorithm])
        backbone = load_backbone(config.policy.model, config.policy.dtype, template=config.data.chat_template_kwargs)
        self._pairs, reasons = encode_pairs(pairs, backbone.front_end)
        if not self._pairs:
            raise UserError(f"None of the {len(pairs)} pairs can be learnt from; the first, about {reasons[0]}.")
        for reason in reasons:
            logger.warning("left out a pair about %s", reason)
        group = LearnerGroup(worker_device())
        if align.sharding == "none":
            backbone.move_to(group.device)
        model = PolicyModel(
            backbone,
            align.lora,
            critic=False,
            seed=config.run.seed,
            activation_checkpointing=align.activation_checkpointing,
            sharded_over=group if align.sharding == "full" else None,
        )
        state = LearnerState(
            model,
            DPOUpdater(model, align.dpo, group, align.steps),
            FixedKLController(align.dpo.beta),
            TrainingGuards(align.guards),
        )
        super().__init__(config, task.folder, group, state, config.run.type_names)
        self._plan = PairPlan(len(self._pairs), config.run.seed)
        self._shown = blindfold(config, "policy", [pair.images for pair in self._pairs]).shown

    def run(self) -> None:
        """Run all remaining steps.

        Raises:
            TrainingStopped: too many steps in a row were not finite.
            UserError: none of the images of this process's share of a step can be read.
        """
        while self.step < self._align.steps:
            began, self._timings = time.monotonic(), {}
            metrics = self._one_step()
            self.step += 1
            self._timings["step"] = time.monotonic() - began
            merged = self._group.merge(metrics | {f"timing/{name}": taken for name, taken in self._timings.items()})
            merged["goodput/tokens_per_second"] = merged["count/tokens"] / merged["timing/step"]
            if self._log is not None:
                self._log.write_metrics(self.step, merged)
                exported.record_step(self.step, self._align.steps, merged)
            self._state.guards.check_update(not math.isfinite(merged["dpo/loss"]) or merged["update/skipped"] > 0)
            self._save_if_due()
        if self._group.rank == 0:
            self._export()

    def _one_step(self) -> dict[str, float]:
        places = self._plan.draw(self.step, self._align.dpo.pairs_per_step)
        wanted = [self._pairs[place] for place in share_of(places, self._group.rank, self._group.size)]
        with self._timed("images"):
            pairs, images = self._opened(wanted)
        with self._timed("update"):
            metrics = self._state.updater.update(pairs, images, self.step)
        return metrics | {
            "count/pairs": float(len(pairs)),
            "count/tokens": float(sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)),
            "count/unreadable": float(len(wanted) - len(pairs)),
        }

    def _opened(self, wanted: Sequence[EncodedPair]) -> tuple[list[EncodedPair], list[tuple[Image, ...]]]:
        """The pairs whose images can be read, with these; the others are named in the log.

        Raises:
            UserError: there are none.
        """
        shown = [self._shown(pair.images) for pair in wanted]
        opened: dict[str, Image] = {}
        paths = (path for images in shown for path in images)
        for path, image in open_images(paths, self._config.data.pixel_budget).items():
            if isinstance(image, UserError):
                logger.warning("left out %s: %s", path, image)
            else:
                opened[path] = image
        readable = [
            (pair, tuple(opened[path] for path in images))
            for pair, images in zip(wanted, shown, strict=True)
            if opened.keys() >= {*images}
        ]
        if not readable:
            raise UserError(f"None of the images of step {self.step + 1} can be read, {wanted[0].images[0]} for one.")
        return [pair for pair, _ in readable], [images for _, images in readable]
