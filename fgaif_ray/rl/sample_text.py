"""Samples of a PPO run as Markdown for TensorBoard, whose text panel has no colours but those of characters."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fgaif_ray.records import ABSENT, CLASS_NAMES, CONSISTENT, HALLUCINATED

SQUARES: Final = {ABSENT: "\u2b1c", CONSISTENT: "\U0001f7e9", HALLUCINATED: "\U0001f7e5"}
"""White, green and red."""


def sample_markdown(samples: Sequence[Mapping[str, Any]]) -> str:
    """Format a table per sample: its segments with the reward models' verdicts, probabilities and rewards.

    Args:
        samples: rows of ``samples.jsonl``. Their texts are escaped, so that they are neither Markdown nor HTML.
    """
    return "\n\n".join(_table(sample) for sample in samples)


def escape_markdown(text: str) -> str:
    """Escape a text so that Markdown shows it as it is, on one line."""
    plain = " ".join(text.split())
    return re.sub(r"[^\w ]", lambda found: f"&#{ord(found[0])};" if found[0].isascii() else found[0], plain).replace(
        "_", "&#95;"
    )


def _table(sample: Mapping[str, Any]) -> str:
    reward, failure = sample["reward"], sample["reward_failure"]
    earned = f"reward {reward:+.2f}" if reward is not None else f"no reward: {escape_markdown(failure or 'not scored')}"
    names = ", ".join(image.rsplit("/", 1)[-1] for image in (sample["image"], *sample.get("more_images", ())))
    title = f"**{escape_markdown(sample['prompt'])}** {escape_markdown(names)}, {earned}"
    if not sample["segments"]:
        return f"{title}\n\n{escape_markdown(sample['response'])}"
    rows = [_row(segment) for segment in sample["segments"]]
    types = list(sample["segments"][0]["probabilities"])
    head = f"| | segment | {' | '.join(types)} | reward |\n|---|---|{'---|' * len(types)}---|"
    return "\n".join([f"{title}\n", head, *rows])


def _row(segment: Mapping[str, Any]) -> str:
    codes = {kind: max(SQUARES, key=found.__getitem__) for kind, found in segment["probabilities"].items()}
    worst = max(codes.values())  # absent, consistent, hallucinated: in this order
    cells = [
        f"{SQUARES[code]} {CLASS_NAMES[code]} {segment['probabilities'][kind][code]:.2f}, "
        f"{segment['rewards'][kind]:+.2f}"
        for kind, code in codes.items()
    ]
    total = sum(segment["rewards"].values())
    return f"| {SQUARES[worst]} | {escape_markdown(segment['text'])} | {' | '.join(cells)} | {total:+.2f} |"
