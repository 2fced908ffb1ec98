"""The card of an aligned policy's adapter."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fgaif_ray.config import Config

NOT_READ: Final = {"tracking"}
NOT_READ_OF_PREFERENCES: Final = {"ppo", "kl", "rollout", "rollout_batch_size", "samples_per_prompt"}
"""Sections and keys of ``align`` that say nothing of how a policy was trained."""


def how_trained(config: Config) -> str:
    """What the adapter has learnt from, as the end of a sentence."""
    types = ", ".join(config.run.type_names)
    name = config.align.algorithm.upper()
    if not config.align.learns_from_preferences:
        return f"with {name} on dense rewards: after each segment, what the reward models ({types}) say about it"
    what = "responses" if config.align.algorithm == "dpo" else "segments after the same context"
    return f"with {name} on preferences: pairs of {what}, of which one is better by the labels ({types})"


def policy_card(config: Config, rows: Sequence[Mapping[str, Any]]) -> str:
    """The README.md of the adapter.

    Args:
        config: the configuration.
        rows: metrics of every step, and of the evaluation before the first.
    """
    rows = [row for row in rows if row["step"] > 0]
    if config.align.learns_from_preferences:
        names = ["dpo/loss", "dpo/told_apart", "dpo/chosen_reward", "dpo/rejected_reward"]
        what = "mean over a step's pairs"
        note = f"""Rewards are the policy's own: beta times its log-probability ratio to the model without adapter.
{len(rows)} steps of {config.align.dpo.pairs_per_step} pairs."""
    else:
        names = ["reward/total", *(f"reward/{kind}" for kind in config.run.type_names)]
        names += ["facts/per_response", "response/length", "kl/per_response"]
        what = "mean over a step's responses"
        note = f"""Rewards are the reward models' judgement, not the truth. {len(rows)} steps of
{config.align.rollout_batch_size} responses."""
    table = "\n".join(f"| {name} | {_figure(rows[0][name])} | {_figure(rows[-1][name])} |" for name in names)
    left_out = NOT_READ | (NOT_READ_OF_PREFERENCES if config.align.learns_from_preferences else {"dpo"})
    settings = json.dumps(config.align.model_dump(mode="json", exclude=left_out), indent=2)
    return f"""---
base_model: {config.policy.model}
library_name: peft
tags: [lora, {config.align.algorithm}, vision-language]
---
# Policy aligned with fine-grained AI feedback

A LoRA adapter for `{config.policy.model}`, trained
{how_trained(config)}.
Method: FGAIF (arXiv 2404.05046).

| {what} | first step | last step |
|---|---|---|
{table}

{note}

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained("{config.policy.model}")
model = PeftModel.from_pretrained(model, "THIS FOLDER")
```

Without PEFT: `fgaif export merged FOLDER --config CONFIG` writes a checkpoint with the adapter merged in. With vLLM:
`vllm serve {config.policy.model} --enable-lora --max-lora-rank {config.align.lora.rank} --lora-modules
aligned=THIS_FOLDER`.

Settings:

```json
{settings}
```
"""


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
