"""Take what was made elsewhere: the aligned model, as a checkpoint of its own or behind vLLM's server, and preferences.

Examples:
    fgaif export merged aligned-model --config my.yaml
    fgaif export serve-command --config my.yaml
    fgaif export preferences pairs --config my.yaml
"""

import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer

from fgaif_ray import storage
from fgaif_ray.config import Config
from fgaif_ray.errors import UserError
from fgaif_ray.progress import say
from fgaif_ray.storage import stages
from jobs.cli import ConfigOption, SetOption, main, read_config


def export_merged(config: Config, folder: str, dtype: str | None = None) -> None:
    """Write the policy with its adapter merged in, as a whole checkpoint that needs no PEFT.

    Args:
        config: ``run.dir`` with a finished ``policy/``, and ``policy.model`` that it was trained on.
        folder: a local path or URI that does not exist yet; it appears when it is complete.
        dtype: ``float32``, ``bfloat16`` or ``float16``; None keeps the checkpoint's own.

    Raises:
        UserError: the policy has not been aligned yet, the folder is there already, the adapter belongs to another
            model, or the rounding would leave too little of it.
    """
    import torch

    from fgaif_ray.vlm.merging import write_merged

    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype is one of {', '.join(DTYPES)}, not {dtype}.")

    stages.require(config.run.dir, stages.POLICY)
    if storage.exists(folder):
        raise UserError(f"{folder} is there already: give a folder that is not, or remove it.")
    adapter = storage.local_copy(storage.join(config.run.dir, stages.POLICY))
    place = os.path.dirname(os.path.abspath(folder.removeprefix("file://"))) if storage.is_local(folder) else None
    if place is not None:
        os.makedirs(place, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fgaif-merged-", dir=place) as unfinished:
        merged = Path(unfinished, "merged")
        try:
            survived = write_merged(
                config.policy.model, adapter, merged, None if dtype is None else getattr(torch, dtype)
            )
        except ValueError as error:
            raise UserError(f"The policy cannot be merged: {error}.") from error
        if survived < LEAST_SURVIVAL:
            raise UserError(
                f"Rounding would leave {survived:.0%} of the update in the merged weights: give --dtype float32, or "
                "serve the adapter beside the model (fgaif export serve-command)."
            )
        (merged / "README.md").write_text(_card(config), encoding="utf-8")
        if place is not None:
            merged.rename(folder.removeprefix("file://"))
        else:
            storage.upload_folder(str(merged), folder)
    say(f"export: the aligned model is in {folder}; {survived:.0%} of the update has survived the rounding.")
    if survived < GOOD_SURVIVAL:
        say("export: what was lost is lost for good; --dtype float32 keeps it, at twice the size.")


def _card(config: Config) -> str:
    from fgaif_ray.rl.policy_card import how_trained

    return f"""---
base_model: {config.policy.model}
base_model_relation: finetune
library_name: transformers
pipeline_tag: image-text-to-text
tags: [{config.align.algorithm}, vision-language]
---
# {config.policy.model}, aligned with fine-grained AI feedback

The weights of `{config.policy.model}` with a LoRA adapter merged in, W + alpha / rank * B A. The adapter was trained
{how_trained(config)}.
Method: FGAIF (arXiv 2404.05046). More stands in the card of the adapter.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("THIS FOLDER")
processor = AutoProcessor.from_pretrained("THIS FOLDER")
```

With vLLM: `vllm serve THIS_FOLDER`. The licence is that of `{config.policy.model}`.
"""


def merged(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="local path or URI that does not exist yet", show_default=False)
    ],
    config: ConfigOption,
    overrides: SetOption = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16 [default: the checkpoint's own]", show_default=False),
    ] = None,
) -> None:
    """Write the aligned model as a checkpoint of its own.

    The adapter is merged in: it has the files, names and dtypes of policy.model, with other weights, and needs no PEFT.

    Example:
        fgaif export merged aligned-model --config my.yaml
    """
    export_merged(read_config(config, overrides), folder, dtype)


def serve_command(config: ConfigOption, overrides: SetOption = None) -> None:
    """Print the command that serves the aligned model.

    Other evaluation harnesses reach it by OpenAI's protocol: vLLM serves the policy as it is (base) and as it was
    aligned (aligned).

    Example:
        fgaif export serve-command --config my.yaml
    """
    from actors.engine.serve_command import ALIGNED_NAME, BASE_NAME, URL, serving_command

    print(shlex.join(serving_command(read_config(config, overrides))))
    say("")
    say(f"It speaks OpenAI's protocol at {URL} with the models {BASE_NAME} and {ALIGNED_NAME}.")
    say("docs/benchmarks.md tells how VLMEvalKit and lmms-eval are pointed at it.")


def export_preferences(
    config: Config, folder: str, form: str = "response", style: str = "trl", kind: str = "jsonl", embed: bool = False
) -> None:
    """Write pairs of the labelled responses as a data set for other trainers.

    Args:
        config: ``run.dir`` with a finished ``feedback/``; ``align.reward`` and ``align.dpo`` say what is better.
        folder: a local path or URI that does not exist yet; it appears when it is complete.
        form: ``response`` or ``segment``.
        style: ``trl``, ``llama-factory`` or ``ms-swift``.
        kind: ``jsonl`` or ``parquet``.
        embed: whether the images' files are put into the rows.

    Raises:
        UserError: an argument is wrong, nothing has been labelled, there is no pair, the folder is there already, or an
            image cannot be used.
    """
    from fgaif_ray.preferences.folder import KINDS, write_pairs
    from fgaif_ray.preferences.formats import FORMATS
    from fgaif_ray.preferences.pair import FORMS
    from fgaif_ray.preferences.pairs import load_pairs

    for option, given, known in (("--form", form, FORMS), ("--format", style, FORMATS), ("--file", kind, KINDS)):
        if given not in known:
            raise UserError(f"{option} is one of {', '.join(known)}, not {given}.")
    pairs = load_pairs(config, cast("Any", form))
    write_pairs(pairs, folder, config, cast("Any", form), style, cast("Any", kind), embed)
    prompts = len({(pair.images, pair.prompt) for pair in pairs})
    say(f"export: {len(pairs)} pairs of {prompts} prompts are in {folder}.")


def preferences(
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="local path or URI that does not exist yet", show_default=False)
    ],
    config: ConfigOption,
    overrides: SetOption = None,
    form: Annotated[
        str, typer.Option(help="response: whole responses; segment: segments after the same clean context")
    ] = "response",
    style: Annotated[str, typer.Option("--format", help="trl, llama-factory or ms-swift")] = "trl",
    kind: Annotated[str, typer.Option("--file", help="jsonl or parquet")] = "jsonl",
    embed: Annotated[bool, typer.Option("--embed", help="put the images into the rows (Parquet, for TRL)")] = False,
) -> None:
    """Write the labelled responses as pairs, one better than the other.

    For DPO with other trainers: TRL's DPOTrainer, LLaMA-Factory or ms-swift. There have to be several responses to an
    image and prompt (sample.samples_per_prompt). align.reward says what is better, and align.dpo by how much.

    Examples:
        fgaif export preferences pairs --config my.yaml
        fgaif export preferences pairs --config my.yaml --form segment --file parquet --embed
    """
    export_preferences(read_config(config, overrides), folder, form, style, kind, embed)


DTYPES: Final = ("float32", "bfloat16", "float16")
LEAST_SURVIVAL: Final = 0.5
"""Share of an update below which a merged model is another one than the aligned."""
GOOD_SURVIVAL: Final = 0.9

commands: Final = {"merged": merged, "serve-command": serve_command, "preferences": preferences}

if __name__ == "__main__":
    sys.exit(main("export"))
