"""The card of an aligned policy's adapter."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fgaif_ray.config import Config


def policy_card(config: Config, rows: Sequence[Mapping[str, Any]]) -> str:
    """The README.md of the adapter.

    Args:
        config: the configuration.
        rows: metrics of every step.
    """
    names = ["reward/total", *(f"reward/{kind}" for kind in config.run.type_names)]
    names += ["facts/per_response", "response/length", "kl/per_response"]
    table = "\n".join(f"| {name} | {_figure(rows[0][name])} | {_figure(rows[-1][name])} |" for name in names)
    settings = json.dumps(config.align.model_dump(mode="json", exclude={"tracking"}), indent=2)
    return f"""---
base_model: {config.policy.model}
library_name: peft
tags: [lora, ppo, vision-language]
---
# Policy aligned with fine-grained AI feedback

A LoRA adapter for `{config.policy.model}`, trained with PPO on dense rewards: after each segment, what the reward
models ({", ".join(config.run.type_names)}) say about it. Method: FGAIF (arXiv 2404.05046).

| mean over a step's responses | first step | last step |
|---|---|---|
{table}

Rewards are the reward models' judgement, not the truth. {len(rows)} steps of {config.align.rollout_batch_size}
responses.

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
