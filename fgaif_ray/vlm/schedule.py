"""Learning-rate schedules, as a function of the step alone: a resumed run needs no state for them."""

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def learning_rate_scale(step: int, *, schedule: Schedule, warmup_steps: int, total_steps: int | None = None) -> float:
    """Return the factor of the learning rates in one step.

    It rises linearly to 1, which the last of the ``warmup_steps`` steps has. Then it stays, or falls from 1 on a line
    or half a cosine (Loshchilov & Hutter 2017, without restarts) that would reach 0 at step ``total_steps``, one after
    the last, so every step learns something.

    Args:
        step: from 0.
        schedule: what comes after the warm-up.
        warmup_steps: 0 for none.
        total_steps: of the run; needed where the rate falls.

    Raises:
        ValueError: the schedule is unknown, or falls without ``total_steps``.
    """
    if schedule not in ("constant", "linear", "cosine"):
        raise ValueError(f"schedule must be 'constant', 'linear' or 'cosine', not {schedule!r}")
    if schedule != "constant" and total_steps is None:
        raise ValueError(f"the {schedule} schedule needs the number of steps of the run")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant" or total_steps is None:
        return 1.0
    whole = max(total_steps - warmup_steps, 1)
    done = min(step - warmup_steps, whole)
    return 1.0 - done / whole if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done / whole))
