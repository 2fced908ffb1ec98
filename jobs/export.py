"""Take what was made elsewhere: the aligned model, as a checkpoint of its own or behind vLLM's server, preferences, and
all of it to the Hugging Face Hub.

Examples:
    fgaif export merged aligned-model --config my.yaml
    fgaif export serve-command --config my.yaml
    fgaif export preferences pairs --config my.yaml
    fgaif export hub --repo me/aligned --dry-run --config my.yaml
"""

import os
import re
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


def export_hub(
    config: Config, repo: str, *, licence: str = "other", images: str = "embed", private: bool = False, dry_run: bool
) -> None:
    """Publish the aligned adapter, the reward models and the feedback as repositories of the Hugging Face Hub.

    Args:
        config: ``run.dir`` with at least one of ``policy/``, ``rewards/`` and ``feedback/``.
        repo: name of the adapter's repository; the others add ``-rewards`` and ``-feedback`` to it.
        licence: identifier for the cards.
        images: ``embed`` or ``reference``.
        private: whether repositories that are made are private.
        dry_run: write the folders to ``hub/`` of the run, and upload nothing.

    Raises:
        UserError: an argument is wrong, there is nothing to publish or no token, or the upload fails.
    """
    from fgaif_ray.publish.data_set import IMAGE_MODES
    from fgaif_ray.publish.folders import HubContent, write_folders
    from fgaif_ray.publish.repositories import finished_repositories
    from fgaif_ray.publish.upload import read_token, upload

    if images not in IMAGE_MODES:
        raise UserError(f"--images is one of {', '.join(IMAGE_MODES)}, not {images}.")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise UserError(f"--license is an identifier such as apache-2.0, cc-by-4.0 or other, not {licence!r}.")
    repositories = finished_repositories(config, repo)
    token = None if dry_run else read_token()
    with tempfile.TemporaryDirectory(prefix="fgaif-hub-") as unfinished:
        content = HubContent(licence, cast("Any", images))
        write_folders(config, repositories, Path(unfinished), content)
        if licence == "other":
            say("export: the cards state no licence; --license ID does.")
        if images == "embed" and config.data.source != "shapes":
            say("export: images that are not of the embedded world go into the data set; may they be published?")
        if token is not None:
            upload(repositories, Path(unfinished), token=token, private=private)
            return
        target = storage.join(config.run.dir, HUB_FOLDER)
        storage.upload_folder(unfinished, target)
    say(f"export: nothing was uploaded; {target} holds what would be:")
    for one in repositories:
        say(f"  {one.stage}/ -> {one.repo_type} {one.name}")


def hub(
    config: ConfigOption,
    repo: Annotated[
        str,
        typer.Option("--repo", metavar="NAME", help="repository of the adapter, e.g. me/aligned", show_default=False),
    ],
    overrides: SetOption = None,
    licence: Annotated[str, typer.Option("--license", metavar="ID", help="of the cards, e.g. cc-by-4.0")] = "other",
    images: Annotated[
        str, typer.Option(help="embed: the images' files are in the data set; reference: their names")
    ] = "embed",
    private: Annotated[bool, typer.Option("--private", help="make private repositories")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="write hub/ into the run's folder, and upload nothing")
    ] = False,
) -> None:
    """Publish adapter, reward models and feedback on the Hugging Face Hub.

    Three repositories: NAME (the aligned adapter), NAME-rewards (a folder for each fact type) and NAME-feedback (a data
    set that datasets.load_dataset reads), each with a card of what was measured. What the run has not made is left out.
    HF_TOKEN holds a token that may write. After a failure the same command goes on.

    Examples:
        fgaif export hub --repo me/aligned --dry-run --config my.yaml
        fgaif export hub --repo me/aligned --private --license cc-by-4.0 --config my.yaml
    """
    export_hub(read_config(config, overrides), repo, licence=licence, images=images, private=private, dry_run=dry_run)


HUB_FOLDER: Final = "hub"
"""Of a run: what a dry run has written."""
DTYPES: Final = ("float32", "bfloat16", "float16")
LEAST_SURVIVAL: Final = 0.5
"""Share of an update below which a merged model is another one than the aligned."""
GOOD_SURVIVAL: Final = 0.9

commands: Final = {"merged": merged, "serve-command": serve_command, "preferences": preferences, "hub": hub}

if __name__ == "__main__":
    sys.exit(main("export"))
